#include "cpu/matmul.h"

#include <algorithm>

#include "cpu/arch.h"
#include "cpu/pool.h"

namespace autotune::cpu {
namespace {

// Tokens converted at a time: bounds the scratch memory, and keeps it in the cache.
constexpr int64_t kChunk = 128;
// Below this many values one thread converts x before another could wake up.
constexpr int64_t kSerialValues = 1 << 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One chunk of tokens of a call, with its scratch memory.
class Chunk {
 public:
  Chunk(const Matmul& call, const Kernels& kernels, Pool& pool)
      : call_(call), kernels_(kernels), pool_(pool), groups_(call.k / call.group_size) {
    const int64_t tokens = std::min(call.m, kChunk);
    rows_ = ceil_div(call.n, kBlockRows) * kBlockRows;
    // The odd cache line keeps the tokens of one k out of the same cache set.
    x_stride_ = ceil_div(call.k / kWordWeights * kernels.words, 16) * 16 + 16;
    const int64_t sums = ceil_div(tokens * groups_, 16) * 16;
    float* scratch = pool.scratch(tokens * x_stride_ + sums + call.split_k * tokens * rows_);
    x_ = reinterpret_cast<uint32_t*>(scratch);
    sums_ = scratch + tokens * x_stride_;
    parts_ = sums_ + sums;
  }

  void run(int64_t first, int64_t tokens) {
    first_ = first;
    tokens_ = tokens;
    const int threads = tokens * call_.k < kSerialValues ? 1 : call_.threads;
    pool_.run(threads, tokens, [this](int64_t token) { convert(token); });
    const int64_t tiles = ceil_div(rows_, call_.tile_n);
    pool_.run(call_.threads, tiles * call_.split_k, [this, tiles](int64_t task) {
      multiply(task % tiles, static_cast<int>(task / tiles));
      if (call_.split_k == 1) finish(task);
    });
    if (call_.split_k > 1) pool_.run(call_.threads, tiles, [this](int64_t tile) { finish(tile); });
  }

 private:
  void convert(int64_t token) {
    const auto* x = static_cast<const uint8_t*>(call_.x) + (first_ + token) * call_.k * width_of(call_.dtype);
    kernels_.convert(x, call_.dtype, call_.k, call_.group_size, x_ + token * x_stride_,
                     sums_ + token * groups_);
  }

  void multiply(int64_t tile, int part) {
    const int64_t end = std::min((tile + 1) * call_.tile_n, rows_) / kBlockRows;
    const int64_t count = ceil_div(tokens_, kernels_.max_tokens);
    for (int64_t i = 0; i < count; ++i) {
      // Token blocks of nearly equal size: 9 tokens are 5 and 4, not 8 and 1.
      const int64_t token = tokens_ * i / count;
      const int size = static_cast<int>(tokens_ * (i + 1) / count - token);
      int64_t block = tile * call_.tile_n / kBlockRows;
      for (int blocks = 4; blocks >= 1; blocks /= 2) {
        for (; block + blocks <= end; block += blocks) {
          kernels_.tile(tile_at(block, token, part), blocks, size);
        }
      }
    }
  }

  Tile tile_at(int64_t block, int64_t token, int part) const {
    const int64_t grouped = block * groups_ * kBlockRows;
    Tile tile;
    tile.qweight = static_cast<const int32_t*>(call_.qweight) + block * (call_.k / kWordWeights) * kBlockRows;
    tile.scales = static_cast<const uint8_t*>(call_.scales) + grouped * width_of(call_.dtype);
    tile.zeros = call_.zeros == nullptr ? nullptr : static_cast<const uint8_t*>(call_.zeros) + grouped;
    tile.dtype = call_.dtype;
    tile.group_size = call_.group_size;
    tile.groups = groups_;
    tile.group_begin = groups_ * part / call_.split_k;
    tile.group_end = groups_ * (part + 1) / call_.split_k;
    tile.x = x_ + token * x_stride_;
    tile.x_stride = x_stride_;
    tile.sums = sums_ + token * groups_;
    tile.out = parts_ + (part * tokens_ + token) * rows_ + block * kBlockRows;
    tile.out_stride = rows_;
    return tile;
  }

  void finish(int64_t tile) {
    const int64_t width = width_of(call_.dtype);
    const int64_t row = tile * call_.tile_n;
    const int64_t count = std::min<int64_t>(call_.tile_n, call_.n - row);
    const auto* bias = static_cast<const uint8_t*>(call_.bias);
    for (int64_t token = 0; token < tokens_; ++token) {
      auto* out = static_cast<uint8_t*>(call_.out) + ((first_ + token) * call_.n + row) * width;
      kernels_.finish(parts_ + token * rows_ + row, call_.split_k, tokens_ * rows_,
                      bias == nullptr ? nullptr : bias + row * width, call_.dtype, count, out);
    }
  }

  const Matmul& call_;
  const Kernels& kernels_;
  Pool& pool_;
  int64_t groups_, rows_, x_stride_;
  uint32_t* x_;   // [tokens][x_stride]
  float* sums_;   // [tokens][groups]
  float* parts_;  // [split_k][tokens][rows]
  int64_t first_ = 0, tokens_ = 0;
};

}  // namespace

void matmul(const Matmul& call) {
  const Kernels& functions = kernels(call.dtype);
  Pool& pool = Pool::instance();
  std::lock_guard<std::mutex> lock(pool.mutex());
  Chunk chunk(call, functions, pool);
  for (int64_t first = 0; first < call.m; first += kChunk) chunk.run(first, std::min(kChunk, call.m - first));
}

}  // namespace autotune::cpu
