// AVX2 with FMA and F16C: 8 rows of a block per vector.
#if defined(__x86_64__)
#include "cpu/digits_avx2.h"

namespace autotune::cpu {
namespace {

struct Avx2 : X86 {
  using Vec = __m256;
  using Words = __m256i;
  static constexpr int kLanes = 8, kWords = 8, kPrefetchWords = 1024;
  static constexpr int kPackedTokens = 4, kUnpackedTokens = 6, kUnpackedBlocks = 1;

  // Blocks at once: enough sums to hide the latency of a multiply-add, few enough for the registers.
  static constexpr int blocks(int tokens) { return tokens > 2 ? 1 : 4 / tokens; }

  static Words load_words(const int32_t* source) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  }
  static Vec dequantize(Words words, int step) {
    const int nibble = step % 2 * 4 + step / 2;
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(words, 28 - 4 * nibble), 28));
  }
  static Vec dot(Vec acc, Vec weights, const uint32_t* x) {
    return _mm256_fmadd_ps(weights, _mm256_broadcast_ss(reinterpret_cast<const float*>(x)), acc);
  }
  static Vec load_scales(const uint8_t* source, Dtype dtype) {
    if (dtype == Dtype::kFp32) return _mm256_loadu_ps(reinterpret_cast<const float*>(source));
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
    if (dtype == Dtype::kFp16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static Vec load_offsets(const uint8_t* zeros) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_set1_epi32(8), _mm256_cvtepu8_epi32(bytes)));
  }
};

}  // namespace

const Kernels kAvx2 = with_digits<Avx2>();

}  // namespace autotune::cpu
#endif
