// The packed weight layout (autotune/layouts/cuda.py says what stands where).
#pragma once

#include "common/numeric.cuh"

constexpr u32 kSymmetricZero = 8;

struct PackedWeight {
  const uint4* words;
  const u16* scales;
  const u32* zeros;
  int n64, k64;

  // Four words of a lane: 16 rows (fragment `b` of block row `nb`), 64 columns (block column `kb`).
  __device__ __forceinline__ const uint4* fragment(int nb, int kb, int b, int lane) const {
    return words + ((static_cast<u64>(nb) * k64 + kb) * 4 + b) * 32 + lane;
  }
  // The scales of rows g and g + 8 of fragment `b`, in the low and high half.
  __device__ __forceinline__ u32 scale_pair(int group, int nb, int b, int g) const {
    const u64 at = ((static_cast<u64>(group) * n64 + nb) * 8 + g) * 8 + 2 * b;
    return ld_global_nc(reinterpret_cast<const u32*>(scales + at));
  }
  // The zeros of rows g + 8 j of the block, in nibbles j = 0..7.
  __device__ __forceinline__ u32 zero_word(int group, int nb, int g) const {
#if ZERO_POINT
    return ld_global_nc(zeros + (static_cast<u64>(group) * n64 + nb) * 8 + g);
#else
    return kSymmetricZero * 0x11111111u;
#endif
  }
};

__device__ __forceinline__ Zeros fragment_zeros(u32 zero_word, int b) {
  return Type::zeros(prmt(zero_word, b * 0x1111));
}
