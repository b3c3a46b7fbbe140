// AVX-512 with bf16 dot products, for x in bf16: 32 weights per look-up and per multiply. q - 8 and the
// products are exact; the sums are fp32.
#if defined(__x86_64__)
#include "cpu/tile_avx512.h"

namespace autotune::cpu {
namespace {

struct Avx512Bf16 : Avx512Base {
  static constexpr int kWords = 4;

  // Blocks at once: enough sums to hide the latency of a multiply-add, few enough for the registers.
  static constexpr int blocks(int tokens) { return tokens > 4 ? 2 : 4; }

  static __m512i dequantize(Words words, int step) {
    // bf16 0..7 and -8..-1, twice: the look-up reads 5 bits, and the fifth belongs to the next nibble.
    const __m512i table = _mm512_broadcast_i64x4(_mm256_setr_epi16(
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, short(0xc100), short(0xc0e0),
        short(0xc0c0), short(0xc0a0), short(0xc080), short(0xc040), short(0xc000), short(0xbf80)));
    return _mm512_permutexvar_epi16(_mm512_srli_epi32(words, 4 * step), table);
  }
  static Vec dot(Vec acc, __m512i weights, const uint32_t* x) {
    const __m512i pairs = _mm512_set1_epi32(static_cast<int>(*x));
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(weights), reinterpret_cast<__m512bh>(pairs));
  }
};

}  // namespace

const Kernels kAvx512Bf16 = kernels_of<Avx512Bf16>();

}  // namespace autotune::cpu
#endif
