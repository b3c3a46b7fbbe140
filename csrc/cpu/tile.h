// One tile of the product, and the functions that each instruction set provides for it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace autotune::cpu {

// Rows of a block of the packed weight, and weights along k in one of its 32-bit words.
constexpr int kBlockRows = 16;
constexpr int kWordWeights = 8;

enum class Dtype : int { kFp16 = 0, kBf16 = 1, kFp32 = 2 };

static constexpr int64_t width_of(Dtype dtype) { return dtype == Dtype::kFp32 ? 4 : 2; }

// Columns of k that are unpacked at once, and the most blocks: 24 KiB of fp32 a block, for the first cache.
constexpr int64_t kPanelColumns = 384;
constexpr int kPanelBlocks = 2;

// `blocks` blocks of rows times `tokens` tokens over the columns [begin, end) of k. Pointers to the weight
// stand at the first block and column 0; x, sums and out at the first token.
struct Tile {
  const int32_t* qweight;
  const uint32_t*
      panel;  // the columns of qweight as made by `unpack`, [blocks][end - begin]; null to read that
  const uint8_t* scales;
  const uint8_t* zeros;  // null when every zero is 8
  Dtype dtype;
  int64_t group_size;
  int64_t k;
  int64_t begin;  // a multiple of 8, as is end
  int64_t end;
  const uint32_t* x;  // [tokens][x_stride] words, as made by the method's `convert`
  int64_t x_stride;
  const float* sums;  // [tokens][groups] of the same
  float* out;         // [tokens][out_stride]
  int64_t out_stride;
  bool add;  // to what is in out
};

// One way to multiply. x is converted for it. No function throws, allocates or reads beyond its arguments.
struct Method {
  int words;       // 32-bit words for 8 values of a converted x
  int sums;        // floats for a group of it
  int max_tokens;  // of a tile
  int blocks;      // of a tile, 1, 2 or 4
  // A token's k values of x to words, and what the tile needs to know of each group.
  void (*convert)(const void* x, Dtype dtype, int64_t k, int64_t group_size, uint32_t* words, float* sums);
  // A tile of at most so many tokens and blocks, 1, 2 or 4.
  void (*tile)(const Tile& tile, int blocks, int tokens);
};

// What an instruction set provides.
struct Kernels {
  Method single;    // whole groups of weights as they are packed, times one token
  Method packed;    // the same times a few
  Method unpacked;  // columns of a panel, whose words are those of x for each row
  // The columns of a tile's first block to a panel: 16 words for each of those of x.
  void (*unpack)(const Tile& tile, uint32_t* panel);
  // out[i] = the sum over `parts` (apart by part_stride) of in[i], in order, plus bias[i] if there is one;
  // count is a multiple of 8.
  void (*finish)(const float* in, int parts, int64_t part_stride, const void* bias, Dtype dtype,
                 int64_t count, void* out);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const Kernels kAvx512Bf16;  // for x in bf16 only
#endif

}  // namespace autotune::cpu
