// The tile as a template over an instruction set, included by one file per set. Everything here has internal
// linkage: code compiled for one instruction set must never be merged with code compiled for another.
#pragma once

#include <cstring>

#include "cpu/tile.h"

#define AUTOTUNE_UNROLL _Pragma("GCC unroll 16")

namespace autotune::cpu {
namespace {

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// Round to nearest, ties to even; a NaN stays one.
inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

template <class Isa>
inline void load8(const void* source, Dtype dtype, int64_t index, float* values) {
  if (dtype == Dtype::kFp32) {
    std::memcpy(values, static_cast<const float*>(source) + index, 8 * sizeof(float));
    return;
  }
  const uint16_t* halves = static_cast<const uint16_t*>(source) + index;
  if (dtype == Dtype::kFp16) return Isa::load8_fp16(halves, values);
  for (int i = 0; i < 8; ++i) values[i] = bits_to_float(uint32_t{halves[i]} << 16);
}

template <class Isa>
inline void store8(const float* values, Dtype dtype, void* target, int64_t index) {
  if (dtype == Dtype::kFp32) {
    std::memcpy(static_cast<float*>(target) + index, values, 8 * sizeof(float));
    return;
  }
  uint16_t* halves = static_cast<uint16_t*>(target) + index;
  if (dtype == Dtype::kFp16) return Isa::store8_fp16(values, halves);
  for (int i = 0; i < 8; ++i) halves[i] = float_to_bf16(values[i]);
}

template <class Isa>
void convert(const void* x, Dtype dtype, int64_t k, int64_t group_size, uint32_t* words, float* sums) {
  for (int64_t begin = 0; begin < k; begin += group_size) {
    float lanes[8] = {};
    for (int64_t i = begin; i < begin + group_size; i += 8) {
      float values[8];
      load8<Isa>(x, dtype, i, values);
      for (int lane = 0; lane < 8; ++lane) lanes[lane] += values[lane];
      if constexpr (Isa::kWords == 8) {
        std::memcpy(words + i, values, sizeof values);
      } else {
        std::memcpy(words + i / 2, static_cast<const uint16_t*>(x) + i, 16);
      }
    }
    *sums++ =
        ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  }
}

// Sums of (q - 8) x are kept per group in registers; the group's scale, and 8 - zero times the group's sum of
// x, join them once per group. The order of additions along k depends on nothing but the instruction set.
template <class Isa, int Blocks, int Tokens>
void tile(const Tile& t) {
  using Vec = typename Isa::Vec;
  constexpr int kPerBlock = kBlockRows / Isa::kLanes;
  constexpr int kVecs = Blocks * kPerBlock;
  const int64_t group_words = t.group_size / kWordWeights * kBlockRows;
  const int64_t block_words = t.groups * group_words;
  const int64_t group_x = t.group_size / kWordWeights * Isa::kWords;

  Vec total[Tokens][kVecs] = {};
  for (int64_t group = t.group_begin; group < t.group_end; ++group) {
    Vec acc[Tokens][kVecs] = {};
    const int32_t* q = t.qweight + group * group_words;
    const uint32_t* x = t.x + group * group_x;
    for (const int32_t* end = q + group_words; q != end; q += kBlockRows, x += Isa::kWords) {
      typename Isa::Words words[kVecs];
      AUTOTUNE_UNROLL for (int v = 0; v < kVecs; ++v) {
        const int32_t* source = q + (v / kPerBlock) * block_words + (v % kPerBlock) * Isa::kLanes;
        if (v % kPerBlock == 0) __builtin_prefetch(source + Isa::kPrefetchWords);
        words[v] = Isa::load_words(source);
      }
      AUTOTUNE_UNROLL for (int step = 0; step < Isa::kWords; ++step) {
        AUTOTUNE_UNROLL for (int v = 0; v < kVecs; ++v) {
          const auto weights = Isa::dequantize(words[v], step);
          AUTOTUNE_UNROLL for (int token = 0; token < Tokens; ++token) {
            acc[token][v] = Isa::dot(acc[token][v], weights, x + token * t.x_stride + step);
          }
        }
      }
    }
    AUTOTUNE_UNROLL for (int v = 0; v < kVecs; ++v) {
      const int64_t at = ((v / kPerBlock) * t.groups + group) * kBlockRows + (v % kPerBlock) * Isa::kLanes;
      const Vec scale = Isa::load_scales(t.scales + at * width_of(t.dtype), t.dtype);
      AUTOTUNE_UNROLL for (int token = 0; token < Tokens; ++token) {
        total[token][v] += scale * acc[token][v];
      }
      if (t.zeros != nullptr) {
        const Vec offset = scale * Isa::load_offsets(t.zeros + at);
        AUTOTUNE_UNROLL for (int token = 0; token < Tokens; ++token) {
          total[token][v] += offset * t.sums[token * t.groups + group];
        }
      }
    }
  }
  AUTOTUNE_UNROLL for (int token = 0; token < Tokens; ++token) {
    AUTOTUNE_UNROLL for (int v = 0; v < kVecs; ++v) {
      std::memcpy(t.out + token * t.out_stride + v * Isa::kLanes, &total[token][v], sizeof(Vec));
    }
  }
}

// Runs `Blocks` blocks at once where the instruction set is fastest so, else halves of them.
template <class Isa, int Blocks, int Tokens>
void split_tile(const Tile& t) {
  if constexpr (Blocks > Isa::blocks(Tokens)) {
    split_tile<Isa, Blocks / 2, Tokens>(t);
    Tile rest = t;
    const int64_t grouped = Blocks / 2 * t.groups * kBlockRows;
    rest.qweight += grouped * t.group_size / kWordWeights;
    rest.scales += grouped * width_of(t.dtype);
    if (t.zeros != nullptr) rest.zeros += grouped;
    rest.out += Blocks / 2 * kBlockRows;
    split_tile<Isa, Blocks / 2, Tokens>(rest);
  } else {
    tile<Isa, Blocks, Tokens>(t);
  }
}

template <class Isa, int Tokens = Isa::kMaxTokens>
void any_tile(const Tile& t, int blocks, int tokens) {
  if constexpr (Tokens > 1) {
    if (tokens < Tokens) return any_tile<Isa, Tokens - 1>(t, blocks, tokens);
  }
  if (blocks == 4) return split_tile<Isa, 4, Tokens>(t);
  if (blocks == 2) return split_tile<Isa, 2, Tokens>(t);
  split_tile<Isa, 1, Tokens>(t);
}

template <class Isa>
void finish(const float* in, int parts, int64_t part_stride, const void* bias, Dtype dtype, int64_t count,
            void* out) {
  for (int64_t i = 0; i < count; i += 8) {
    float values[8];
    std::memcpy(values, in + i, sizeof values);
    for (int part = 1; part < parts; ++part) {
      for (int lane = 0; lane < 8; ++lane) values[lane] += in[part * part_stride + i + lane];
    }
    if (bias != nullptr) {
      float shift[8];
      load8<Isa>(bias, dtype, i, shift);
      for (int lane = 0; lane < 8; ++lane) values[lane] += shift[lane];
    }
    store8<Isa>(values, dtype, out, i);
  }
}

template <class Isa>
constexpr Kernels kernels_of() {
  return {Isa::kWords, Isa::kMaxTokens, convert<Isa>, any_tile<Isa>, finish<Isa>};
}

}  // namespace
}  // namespace autotune::cpu
