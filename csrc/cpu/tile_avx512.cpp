// AVX-512: a table look-up turns one nibble of 16 rows into floats.
#if defined(__x86_64__)
#include "cpu/tile_avx512.h"

namespace autotune::cpu {
namespace {

struct Avx512 : Avx512Base {
  static constexpr int kWords = 8;

  // Blocks at once: enough sums to hide the latency of a multiply-add, few enough for the registers.
  static constexpr int blocks(int tokens) { return tokens > 4 ? 1 : 4; }

  static Vec dequantize(Words words, int step) {
    const int nibble = step % 2 * 4 + step / 2;
    const Vec table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    // The look-up reads only the low 4 bits of an index.
    return _mm512_permutexvar_ps(_mm512_srli_epi32(words, 4 * nibble), table);
  }
  static Vec dot(Vec acc, Vec weights, const uint32_t* x) {
    return _mm512_fmadd_ps(weights, _mm512_set1_ps(bits_to_float(*x)), acc);
  }
};

}  // namespace

const Kernels kAvx512 = kernels_of<Avx512>();

}  // namespace autotune::cpu
#endif
