// 128-bit vectors by the compiler's own vector types: SSE2, NEON, or whatever the target has.
#include "cpu/tile_impl.h"

namespace autotune::cpu {
namespace {

uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float fp16_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // Multiplying by 2^112 moves the exponent's bias from 15 to 127, for subnormal halves too.
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
}

// Round to nearest, ties to even; a NaN stays one.
uint16_t float_to_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

// Round to nearest, ties to even.
uint16_t float_to_fp16(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint16_t sign = bits >> 16 & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Adding 0.5 leaves the half's subnormal bits, rounded, at the end of the float.
    return sign | static_cast<uint16_t>(float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000);
  }
  return sign | static_cast<uint16_t>((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

struct Portable {
  typedef float Vec __attribute__((vector_size(16)));
  typedef int32_t Words __attribute__((vector_size(16)));
  static constexpr int kLanes = 4, kWords = 8, kPrefetchWords = 256;
  static constexpr int kPackedTokens = 2, kUnpackedTokens = 3, kUnpackedBlocks = 1;

  // Blocks at once: enough sums to hide the latency of a multiply-add, few enough for the registers.
  static constexpr int blocks(int tokens) { return tokens == 1 ? 2 : 1; }

  static Words load_words(const int32_t* source) {
    Words words;
    std::memcpy(&words, source, sizeof words);
    return words;
  }
  static Vec dequantize(Words words, int step) {
    const int nibble = step % 2 * 4 + step / 2;
    return __builtin_convertvector(words << (28 - 4 * nibble) >> 28, Vec);
  }
  static Vec dot(Vec acc, Vec weights, const uint32_t* x) { return acc + weights * bits_to_float(*x); }
  static Vec load_scales(const uint8_t* source, Dtype dtype) {
    Vec scales;
    for (int i = 0; i < kLanes; ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, source + i * width_of(dtype), width_of(dtype));
      if (dtype == Dtype::kFp16) scales[i] = fp16_to_float(static_cast<uint16_t>(bits));
      if (dtype == Dtype::kBf16) scales[i] = bits_to_float(bits << 16);
      if (dtype == Dtype::kFp32) scales[i] = bits_to_float(bits);
    }
    return scales;
  }
  static Vec load_offsets(const uint8_t* zeros) {
    Vec offsets;
    for (int i = 0; i < kLanes; ++i) offsets[i] = static_cast<float>(8 - zeros[i]);
    return offsets;
  }
  static void load8_fp16(const uint16_t* source, Eight& values) {
    for (int i = 0; i < 8; ++i) values[i] = fp16_to_float(source[i]);
  }
  static void store8_fp16(const Eight& values, uint16_t* target) {
    for (int i = 0; i < 8; ++i) target[i] = float_to_fp16(values[i]);
  }
  static void store8_bf16(const Eight& values, uint16_t* target) {
    for (int i = 0; i < 8; ++i) target[i] = float_to_bf16(values[i]);
  }
};

}  // namespace

const Kernels kPortable = kernels_of<Portable>();

}  // namespace autotune::cpu
