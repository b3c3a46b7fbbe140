// out[m, n] = x[m, k] @ dequant(w[n, k]).T + bias[n]: a block has ROWS rows and one token, a thread each row.
//
// Compile-time: ROWS; GROUP (32, 64, 128; 0 is one group of all k); ZERO_POINT; BF16.
#include "common/layout.cuh"

constexpr int kThreads = ROWS;

extern "C" __global__ void __launch_bounds__(kThreads)
    toy(const u16* x, const uint4* qweight, const u16* scales, const u32* zeros, const u16* bias, u16* out,
        long long m, long long n, long long k) {
  const int row = blockIdx.x * ROWS + threadIdx.x, token = blockIdx.y;
  if (row >= n || token >= m) return;
  const PackedWeight weight{qweight, scales, zeros, static_cast<int>((n + 63) / 64),
                            static_cast<int>((k + 63) / 64)};
  const int nb = row / 64, b = row / 16 % 4, half = row / 8 % 2, g = row % 8;
  float sum = 0.f;
  for (int column = 0; column < k; ++column) {
    const int group = GROUP == 0 ? 0 : column / (GROUP + (GROUP == 0)), s = column / 16 % 4;
    const u32* words =
        reinterpret_cast<const u32*>(weight.fragment(nb, column / 64, b, g * 4 + column % 8 / 2));
    const int nibble = 4 * (column % 2) + 2 * (column / 8 % 2) + half;
    const int q = words[s] >> (4 * nibble) & 15,
              zero = weight.zero_word(group, nb, g) >> (8 * b + 4 * half) & 15;
    const u32 scale = weight.scale_pair(group, nb, b, g) >> (16 * half);
    sum += Type::to_float(x[token * k + column]) * static_cast<float>(q - zero) *
           Type::to_float(static_cast<u16>(scale));
  }
  if (bias != nullptr) sum += Type::to_float(bias[row]);
  out[token * n + row] = static_cast<u16>(Type::from_floats(sum, 0.f));
}
