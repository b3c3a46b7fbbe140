// The two 16-bit types: how nibbles, scales and results become and leave them.
#pragma once

#include "common/ptx.cuh"

// What a lane subtracts from the rows g and g + 8 of its fragment, in the form its type needs.
struct Zeros {
  u32 g, g8;
};

// fp16: 0x6400 | q is 1024 + q, and 0x6400 | q << 4 is 1024 + 16 q, both exact.
struct Half {
  // Of both nibbles of bytes 0 and 2, which are equal.
  static __device__ __forceinline__ Zeros zeros(u32 pairs) {
    return {lop3_and_or<0x000F000Fu, 0x64006400u>(pairs), lop3_and_or<0x00F000F0u, 0xD400D400u>(pairs)};
  }
  // Eight nibbles of a packed word to the lane's A fragment of (q - z), exact.
  static __device__ __forceinline__ uint4 dequantize(u32 word, Zeros z) {
    const u32 upper = word >> 8;
    const u32 sixteenth = 0x2C002C00u;
    uint4 a;
    a.x = sub_f16x2(lop3_and_or<0x000F000Fu, 0x64006400u>(word), z.g);
    a.y = fma_f16x2(lop3_and_or<0x00F000F0u, 0x64006400u>(word), sixteenth, z.g8);
    a.z = sub_f16x2(lop3_and_or<0x000F000Fu, 0x64006400u>(upper), z.g);
    a.w = fma_f16x2(lop3_and_or<0x00F000F0u, 0x64006400u>(upper), sixteenth, z.g8);
    return a;
  }
  static __device__ __forceinline__ u32 multiply(u32 a, u32 b) { return mul_f16x2(a, b); }
  static __device__ __forceinline__ void mma(float (&d)[4], uint4 a, u32 b0, u32 b1) {
    mma_m16n8k16_f16(d, a, b0, b1);
  }
  static __device__ __forceinline__ float to_float(u16 a) { return cvt_f32_f16(a); }
  static __device__ __forceinline__ u32 from_floats(float low, float high) {
    return cvt_f16x2_f32(low, high);
  }
};

// bf16: 0x4300 | q is 128 + q, exact; it has no room for a shifted nibble. An fp16 FMA shifts it, because the
// ALU has more to do: 0x6400 | q << 4 is 1024 + 16 q, and 2^-13 of it + 3.375 is 3.5 + q 2^-9, whose bits
// are 0x4300 | q.
__device__ __forceinline__ u32 lower_bf16(u32 word) { return lop3_and_or<0x000F000Fu, 0x43004300u>(word); }
__device__ __forceinline__ u32 upper_bf16(u32 word) {
  return fma_f16x2(lop3_and_or<0x00F000F0u, 0x64006400u>(word), 0x08000800u, 0x42C042C0u);
}
__device__ __forceinline__ uint4 biased_bf16(u32 word) {
  const u32 upper = word >> 8;
  return {lower_bf16(word), upper_bf16(word), lower_bf16(upper), upper_bf16(upper)};
}

struct Bfloat {
  static __device__ __forceinline__ Zeros zeros(u32 pairs) {
    return {lop3_and_or<0x000F000Fu, 0xC300C300u>(pairs), lop3_and_or<0x000F000Fu, 0xC300C300u>(pairs >> 4)};
  }
  static __device__ __forceinline__ uint4 dequantize(u32 word, Zeros z) {
    const uint4 a = biased_bf16(word);
    const u32 one = 0x3F803F80u;
    return {fma_bf16x2(a.x, one, z.g), fma_bf16x2(a.y, one, z.g8), fma_bf16x2(a.z, one, z.g),
            fma_bf16x2(a.w, one, z.g8)};
  }
  // sm_80 has no bf16 multiply; -0 as the addend keeps every product's sign.
  static __device__ __forceinline__ u32 multiply(u32 a, u32 b) { return fma_bf16x2(a, b, 0x80008000u); }
  static __device__ __forceinline__ void mma(float (&d)[4], uint4 a, u32 b0, u32 b1) {
    mma_m16n8k16_bf16(d, a, b0, b1);
  }
  static __device__ __forceinline__ float to_float(u16 a) {
    return __uint_as_float(static_cast<u32>(a) << 16);
  }
  static __device__ __forceinline__ u32 from_floats(float low, float high) {
    return cvt_bf16x2_f32(low, high);
  }
};

#if BF16
using Type = Bfloat;
#else
using Type = Half;
#endif

// Nibbles with their zeros left in, for kernels that subtract the zeros from the sums; rows g and g + 8 are
// in units of their own. fp16: subnormal numbers q 2^-24 and 16 q 2^-24, which tensor cores multiply exactly.
struct RawHalf {
  static constexpr u32 kOne = 0x3C003C00u;
  static constexpr float kUnit = 16777216.f, kUnit8 = 1048576.f;
  static __device__ __forceinline__ uint4 fragment(u32 word) {
    const u32 upper = word >> 8;
    return {word & 0x000F000Fu, word & 0x00F000F0u, upper & 0x000F000Fu, upper & 0x00F000F0u};
  }
  // What q = z becomes in the rows g (half 0) or g + 8 of fragment `b`.
  static __device__ __forceinline__ float zero(u32 zero_word, int b, int half) {
    const u32 pair = (b % 2 ? zero_word >> 8 : zero_word) & (half ? 0x00F000F0u : 0x000F000Fu);
    return cvt_f32_f16(static_cast<u16>(b / 2 ? pair >> 16 : pair));
  }
};

// bf16: 128 + q.
struct RawBfloat {
  static constexpr u32 kOne = 0x3F803F80u;
  static constexpr float kUnit = 1.f, kUnit8 = 1.f;
  static __device__ __forceinline__ uint4 fragment(u32 word) { return biased_bf16(word); }
  static __device__ __forceinline__ float zero(u32 zero_word, int b, int half) {
    return __uint_as_float(0x43000000u | (zero_word >> (8 * b + 4 * half) & 15u) << 16);
  }
};

#if BF16
using Raw = RawBfloat;
#else
using Raw = RawHalf;
#endif

__device__ __forceinline__ uint4 scale_fragment(uint4 a, u32 scales) {
  const u32 g = prmt(scales, 0x1010), g8 = prmt(scales, 0x3232);
  return {Type::multiply(a.x, g), Type::multiply(a.y, g8), Type::multiply(a.z, g), Type::multiply(a.w, g8)};
}

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
