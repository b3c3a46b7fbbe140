// out[rows, k] = dequant(w[row0 : row0 + rows, k]) in x's type, rounded once. A block of 4 warps owns 64 x
// 64: each warp 16 rows, through shared memory so that every global store is 16 bytes of a whole line.
//
// Compile-time: GROUP (32, 64, 128; 0 is one group of all k); ZERO_POINT; BF16. row0 is a multiple of 64.
#include "common/layout.cuh"

constexpr int kStride = 64 + 8;  // 16 bytes more: rows fall into different banks

extern "C" __global__ void __launch_bounds__(128)
    dequantize(const uint4* qweight, const u16* scales, const u32* zeros, u16* out, long long row0,
               long long rows, long long n, long long k) {
  __shared__ __align__(16) u16 tile[64 * kStride];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const PackedWeight weight{qweight, scales, zeros, static_cast<int>((n + 63) / 64),
                            static_cast<int>((k + 63) / 64)};
  const int row_block = static_cast<int>(row0 / 64) + blockIdx.y, column_block = blockIdx.x;
  const uint4 words = ld_global_nc_no_allocate(weight.fragment(row_block, column_block, warp, lane));
  const u32 each[4] = {words.x, words.y, words.z, words.w};
  u16* at = tile + (warp * 16 + lane / 4) * kStride + lane % 4 * 2;
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    const int group = GROUP == 0    ? 0
                      : GROUP == 32 ? column_block * 2 + s / 2
                                    : column_block * 64 / (GROUP + (GROUP == 0));
    const Zeros z = fragment_zeros(weight.zero_word(group, row_block, lane / 4), warp);
    const uint4 a =
        scale_fragment(Type::dequantize(each[s], z), weight.scale_pair(group, row_block, warp, lane / 4));
    *reinterpret_cast<u32*>(at + s * 16) = a.x;
    *reinterpret_cast<u32*>(at + s * 16 + 8 * kStride) = a.y;
    *reinterpret_cast<u32*>(at + s * 16 + 8) = a.z;
    *reinterpret_cast<u32*>(at + s * 16 + 8 * kStride + 8) = a.w;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 64 * 8; i += 128) {
    const long long row = blockIdx.y * 64 + i / 8, column = column_block * 64 + i % 8 * 8;
    if (row < rows && column < k)
      *reinterpret_cast<uint4*>(out + row * k + column) =
          *reinterpret_cast<const uint4*>(tile + i / 8 * kStride + i % 8 * 8);
  }
}
