// The tile as a template over an instruction set, included by one file per set. Everything here has internal
// linkage: code compiled for one instruction set must never be merged with code compiled for another.
#pragma once

#include <cstring>

#include "cpu/tile.h"

#define AUTOTUNE_UNROLL _Pragma("GCC unroll 16")

namespace autotune::cpu {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// In one register where there are such, so that no value goes through memory in two halves.
typedef float Eight __attribute__((vector_size(32)));
typedef uint16_t EightHalves __attribute__((vector_size(16)));
typedef uint32_t EightWords __attribute__((vector_size(32)));

template <class Isa>
inline void load8(const void* source, Dtype dtype, int64_t index, Eight& values) {
  if (dtype == Dtype::kFp32) {
    std::memcpy(&values, static_cast<const float*>(source) + index, sizeof values);
    return;
  }
  const uint16_t* halves = static_cast<const uint16_t*>(source) + index;
  if (dtype == Dtype::kFp16) return Isa::load8_fp16(halves, values);
  EightHalves bf16;
  std::memcpy(&bf16, halves, sizeof bf16);
  values = reinterpret_cast<Eight>(__builtin_convertvector(bf16, EightWords) << 16);
}

template <class Isa>
inline void store8(const Eight& values, Dtype dtype, void* target, int64_t index) {
  if (dtype == Dtype::kFp32) {
    std::memcpy(static_cast<float*>(target) + index, &values, sizeof values);
    return;
  }
  uint16_t* halves = static_cast<uint16_t*>(target) + index;
  dtype == Dtype::kFp16 ? Isa::store8_fp16(values, halves) : Isa::store8_bf16(values, halves);
}

template <class Isa>
void convert(const void* x, Dtype dtype, int64_t k, int64_t group_size, uint32_t* words, float* sums) {
  for (int64_t begin = 0; begin < k; begin += group_size) {
    Eight lanes = {};
    for (int64_t i = begin; i < begin + group_size; i += 8) {
      Eight values;
      load8<Isa>(x, dtype, i, values);
      lanes += values;
      if constexpr (Isa::kWords == 8) {
        std::memcpy(words + i, &values, sizeof values);
      } else {
        std::memcpy(words + i / 2, static_cast<const uint16_t*>(x) + i, 16);
      }
    }
    *sums++ =
        ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  }
}

// Whether a panel holds (q - zero) * scale; bf16 has no bits for that, and holds q - 8.
template <class Isa>
constexpr bool kScaled = Isa::kWords == 8;

template <class Isa>
void unpack(const Tile& t, uint32_t* panel) {
  for (int64_t column = t.begin; column < t.end;) {
    const int64_t group = column / t.group_size;
    const int64_t stop = least((group + 1) * t.group_size, t.end);
    for (int lane = 0; lane < kBlockRows; lane += Isa::kLanes) {
      const int64_t at = group * kBlockRows + lane;
      [[maybe_unused]] const auto scale = Isa::load_scales(t.scales + at * width_of(t.dtype), t.dtype);
      typename Isa::Vec offset = {};
      if (t.zeros != nullptr) offset = Isa::load_offsets(t.zeros + at);
      const int32_t* source = t.qweight + column / kWordWeights * kBlockRows + lane;
      uint32_t* target = panel + lane;
      for (int64_t left = stop - column; left > 0; left -= kWordWeights, source += kBlockRows) {
        const auto words = Isa::load_words(source);
        AUTOTUNE_UNROLL for (int step = 0; step < Isa::kWords; ++step, target += kBlockRows) {
          auto weights = Isa::dequantize(words, step);
          if constexpr (kScaled<Isa>) weights = (weights + offset) * scale;
          std::memcpy(target, &weights, sizeof weights);
        }
      }
    }
    panel += (stop - column) / kWordWeights * Isa::kWords * kBlockRows;
    column = stop;
  }
}

// The vectors of weights of 8 columns, read as they are packed.
template <class Isa, int Vecs>
class Packed {
 public:
  static constexpr bool kIsScaled = false;

  Packed(const Tile& t, int64_t column)
      : q_(t.qweight + column / kWordWeights * kBlockRows), block_words_(t.k / kWordWeights * kBlockRows) {}

  void next() {
    AUTOTUNE_UNROLL for (int v = 0; v < Vecs; ++v) {
      const int32_t* source = q_ + (v / kPerBlock) * block_words_ + (v % kPerBlock) * Isa::kLanes;
      if (v % kPerBlock == 0) __builtin_prefetch(source + Isa::kPrefetchWords);
      words_[v] = Isa::load_words(source);
    }
    q_ += kBlockRows;
  }
  auto weights(int v, int step) const { return Isa::dequantize(words_[v], step); }

 private:
  static constexpr int kPerBlock = kBlockRows / Isa::kLanes;
  const int32_t* q_;
  int64_t block_words_;
  typename Isa::Words words_[Vecs];
};

// The same of a panel.
template <class Isa, int Vecs>
class Unpacked {
 public:
  static constexpr bool kIsScaled = kScaled<Isa>;

  Unpacked(const Tile& t, int64_t column)
      : next_(t.panel + (column - t.begin) * kColumnWords), block_words_((t.end - t.begin) * kColumnWords) {}

  void next() {
    at_ = next_;
    next_ += kWordWeights * kColumnWords;
  }
  auto weights(int v, int step) const {
    decltype(Isa::dequantize(typename Isa::Words{}, 0)) weights;
    const uint32_t* source = at_ + (v / kPerBlock) * block_words_ + (v % kPerBlock) * Isa::kLanes;
    std::memcpy(&weights, source + step * kBlockRows, sizeof weights);
    return weights;
  }

 private:
  static constexpr int kPerBlock = kBlockRows / Isa::kLanes;
  static constexpr int kColumnWords = Isa::kWords * kBlockRows / kWordWeights;
  const uint32_t *next_, *at_ = nullptr;
  int64_t block_words_;
};

// The multiply-adds of one step. Registers hold the fewer: the vectors of weights, or one value of each
// token.
template <class Isa, int Tokens, int Vecs, class Source>
inline void dot_step(typename Isa::Vec (&acc)[Tokens][Vecs], const Source& source, const uint32_t* x,
                     int64_t x_stride, int step) {
  if constexpr (Tokens > Vecs) {
    decltype(source.weights(0, 0)) weights[Vecs];
    AUTOTUNE_UNROLL for (int v = 0; v < Vecs; ++v) weights[v] = source.weights(v, step);
    AUTOTUNE_UNROLL for (int token = 0; token < Tokens; ++token) {
      AUTOTUNE_UNROLL for (int v = 0; v < Vecs; ++v) {
        acc[token][v] = Isa::dot(acc[token][v], weights[v], x + token * x_stride);
      }
    }
  } else {
    AUTOTUNE_UNROLL for (int v = 0; v < Vecs; ++v) {
      const auto weights = source.weights(v, step);
      AUTOTUNE_UNROLL for (int token = 0; token < Tokens; ++token) {
        acc[token][v] = Isa::dot(acc[token][v], weights, x + token * x_stride);
      }
    }
  }
}

// total[token][v] += the group's scale times acc, and 8 - zero times the group's sum of x when it is at its
// end.
template <class Isa, int Tokens, int Vecs>
inline void add_scaled(const Tile& t, int64_t group, bool whole, const typename Isa::Vec (&acc)[Tokens][Vecs],
                       typename Isa::Vec (&total)[Tokens][Vecs]) {
  using Vec = typename Isa::Vec;
  constexpr int kPerBlock = kBlockRows / Isa::kLanes;
  const int64_t groups = t.k / t.group_size;
  AUTOTUNE_UNROLL for (int v = 0; v < Vecs; ++v) {
    const int64_t at = ((v / kPerBlock) * groups + group) * kBlockRows + (v % kPerBlock) * Isa::kLanes;
    const Vec scale = Isa::load_scales(t.scales + at * width_of(t.dtype), t.dtype);
    AUTOTUNE_UNROLL for (int token = 0; token < Tokens; ++token) total[token][v] += scale * acc[token][v];
    if (t.zeros != nullptr && whole) {
      const Vec offset = scale * Isa::load_offsets(t.zeros + at);
      AUTOTUNE_UNROLL for (int token = 0; token < Tokens; ++token) {
        total[token][v] += offset * t.sums[token * groups + group];
      }
    }
  }
}

// Sums of (q - 8) x are kept per group in registers and join the total with the group's scale; those of
// scaled weights are the total. The order of additions along k depends on nothing but the instruction set,
// the source and where k is cut into [begin, end).
template <class Isa, template <class, int> class Source, int Blocks, int Tokens>
void tile(const Tile& t) {
  using Vec = typename Isa::Vec;
  constexpr int kVecs = Blocks * kBlockRows / Isa::kLanes;
  using Weights = Source<Isa, kVecs>;

  Vec total[Tokens][kVecs] = {};
  if (t.add) {
    AUTOTUNE_UNROLL for (int token = 0; token < Tokens; ++token) {
      std::memcpy(total[token], t.out + token * t.out_stride, sizeof total[token]);
    }
  }
  for (int64_t column = t.begin; column < t.end;) {
    const int64_t group = column / t.group_size;
    const int64_t group_end = (group + 1) * t.group_size;
    const int64_t stop = Weights::kIsScaled ? t.end : least(group_end, t.end);
    Vec acc[Tokens][kVecs] = {};
    Weights weights(t, column);
    const uint32_t* x = t.x + column / kWordWeights * Isa::kWords;
    for (; column != stop; column += kWordWeights, x += Isa::kWords) {
      weights.next();
      AUTOTUNE_UNROLL for (int step = 0; step < Isa::kWords; ++step) {
        dot_step<Isa>(acc, weights, x + step, t.x_stride, step);
      }
    }
    if constexpr (Weights::kIsScaled) {
      AUTOTUNE_UNROLL for (int token = 0; token < Tokens; ++token) {
        AUTOTUNE_UNROLL for (int v = 0; v < kVecs; ++v) total[token][v] += acc[token][v];
      }
    } else {
      add_scaled<Isa>(t, group, group_end <= t.end, acc, total);
    }
  }
  AUTOTUNE_UNROLL for (int token = 0; token < Tokens; ++token) {
    std::memcpy(t.out + token * t.out_stride, total[token], sizeof total[token]);
  }
}

// Runs `Blocks` blocks at once where the instruction set is fastest so, else halves of them.
template <class Isa, int Blocks, int Tokens>
void split_tile(const Tile& t) {
  if constexpr (Blocks > Isa::blocks(Tokens)) {
    split_tile<Isa, Blocks / 2, Tokens>(t);
    Tile rest = t;
    const int64_t grouped = Blocks / 2 * (t.k / t.group_size) * kBlockRows;
    rest.qweight += Blocks / 2 * (t.k / kWordWeights) * kBlockRows;
    rest.scales += grouped * width_of(t.dtype);
    if (t.zeros != nullptr) rest.zeros += grouped;
    rest.out += Blocks / 2 * kBlockRows;
    split_tile<Isa, Blocks / 2, Tokens>(rest);
  } else {
    tile<Isa, Packed, Blocks, Tokens>(t);
  }
}

template <class Isa, int Tokens = Isa::kPackedTokens>
void packed_tile(const Tile& t, int blocks, int tokens) {
  if constexpr (Tokens > 1) {
    if (tokens < Tokens) return packed_tile<Isa, Tokens - 1>(t, blocks, tokens);
  }
  if (blocks == 4) return split_tile<Isa, 4, Tokens>(t);
  if (blocks == 2) return split_tile<Isa, 2, Tokens>(t);
  split_tile<Isa, 1, Tokens>(t);
}

template <class Isa, int Tokens = Isa::kUnpackedTokens>
void unpacked_tile(const Tile& t, int blocks, int tokens) {
  if constexpr (Tokens > 1) {
    if (tokens < Tokens) return unpacked_tile<Isa, Tokens - 1>(t, blocks, tokens);
  }
  if constexpr (Isa::kUnpackedBlocks == 2) {
    if (blocks == 2) return tile<Isa, Unpacked, 2, Tokens>(t);
  }
  tile<Isa, Unpacked, 1, Tokens>(t);
}

template <class Isa>
void finish(const float* in, int parts, int64_t part_stride, const void* bias, Dtype dtype, int64_t count,
            void* out) {
  for (int64_t i = 0; i < count; i += 8) {
    Eight values;
    std::memcpy(&values, in + i, sizeof values);
    for (int part = 1; part < parts; ++part) {
      Eight more;
      std::memcpy(&more, in + part * part_stride + i, sizeof more);
      values += more;
    }
    if (bias != nullptr) {
      Eight shift;
      load8<Isa>(bias, dtype, i, shift);
      values += shift;
    }
    store8<Isa>(values, dtype, out, i);
  }
}

template <class Isa>
constexpr Kernels kernels_of() {
  static_assert(Isa::kUnpackedBlocks <= kPanelBlocks);
  constexpr Method packed = {Isa::kWords, 1, Isa::kPackedTokens, 4, convert<Isa>, packed_tile<Isa>};
  return {packed,
          packed,
          {Isa::kWords, 1, Isa::kUnpackedTokens, Isa::kUnpackedBlocks, convert<Isa>, unpacked_tile<Isa>},
          unpack<Isa>,
          finish<Isa>};
}

}  // namespace
}  // namespace autotune::cpu
