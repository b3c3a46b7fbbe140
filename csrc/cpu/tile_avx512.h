// What both AVX-512 files share: a block's 16 rows are one vector.
#pragma once

#include "cpu/tile_x86.h"

namespace autotune::cpu {
namespace {

struct Avx512Base : X86 {
  using Vec = __m512;
  using Words = __m512i;
  static constexpr int kLanes = 16, kPrefetchWords = 512;
  static constexpr int kPackedTokens = 8, kUnpackedTokens = 12, kUnpackedBlocks = 2;

  static Words load_words(const int32_t* source) { return _mm512_loadu_si512(source); }
  static Vec load_scales(const uint8_t* source, Dtype dtype) {
    if (dtype == Dtype::kFp32) return _mm512_loadu_ps(source);
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    if (dtype == Dtype::kFp16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static Vec load_offsets(const uint8_t* zeros) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_set1_epi32(8), _mm512_cvtepu8_epi32(bytes)));
  }
};

}  // namespace
}  // namespace autotune::cpu
