#include "cpu/matmul.h"

#include <algorithm>
#include <vector>

#include "cpu/arch.h"
#include "cpu/pool.h"

namespace autotune::cpu {
namespace {

// Tokens converted at a time where weights are not unpacked: bounds the scratch memory, and keeps it in the
// cache.
constexpr int64_t kChunk = 128;
// Below this many values one thread converts x before another could wake up.
constexpr int64_t kSerialValues = 1 << 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One chunk of tokens of a call, with its scratch memory.
class Chunk {
 public:
  Chunk(const Matmul& call, const Kernels& kernels, Pool& pool)
      : call_(call),
        kernels_(kernels),
        method_(call.unpack_m > 0 ? kernels.unpacked
                : call.m == 1     ? kernels.single
                                  : kernels.packed),
        pool_(pool),
        groups_(call.k / call.group_size) {
    const int64_t tokens = std::min(call.m, most_tokens());
    blocks_ = ceil_div(call.n, kBlockRows);
    tiles_ = ceil_div(blocks_ * kBlockRows, call.tile_n);
    // The odd cache line keeps the tokens of one k out of the same cache set.
    x_stride_ = ceil_div(call.k / kWordWeights * method_.words, 16) * 16 + 16;
    const int64_t sums = ceil_div(tokens * groups_ * method_.sums, 16) * 16;
    const int64_t parts = call.split_k > 1 ? call.split_k * tiles_ * tokens * call.tile_n : 0;
    float* scratch = pool.scratch(tokens * x_stride_ + sums + parts);
    x_ = reinterpret_cast<uint32_t*>(scratch);
    sums_ = scratch + tokens * x_stride_;
    parts_ = sums_ + sums;
  }

  int64_t most_tokens() const { return call_.unpack_m > 0 ? call_.unpack_m : kChunk; }

  void run(int64_t first, int64_t tokens) {
    first_ = first;
    tokens_ = tokens;
    const int threads = tokens * call_.k < kSerialValues ? 1 : call_.threads;
    pool_.run(threads, tokens, [this](int64_t token) { convert(token); });
    if (call_.split_k == 1) {
      return pool_.run(call_.threads, tiles_, [this](int64_t tile) {
        float* out = sums_of_task(tokens_ * call_.tile_n);
        multiply(tile, 0, out);
        finish(tile, out);
      });
    }
    pool_.run(call_.threads, tiles_ * call_.split_k, [this](int64_t task) {
      multiply(task % tiles_, static_cast<int>(task / tiles_), part_of(task));
    });
    pool_.run(call_.threads, tiles_, [this](int64_t tile) { finish(tile, part_of(tile)); });
  }

 private:
  void convert(int64_t token) {
    const auto* x = static_cast<const uint8_t*>(call_.x) + (first_ + token) * call_.k * width_of(call_.dtype);
    method_.convert(x, call_.dtype, call_.k, call_.group_size, x_ + token * x_stride_,
                    sums_ + token * groups_ * method_.sums);
  }

  // Of the thread, so that they stay in its cache from task to task.
  static float* sums_of_task(size_t size) {
    thread_local std::vector<float> sums;
    if (sums.size() < size) sums.resize(size);
    return sums.data();
  }

  float* part_of(int64_t task) const { return parts_ + task * tokens_ * call_.tile_n; }

  void multiply(int64_t tile, int part, float* out) {
    const int64_t begin = groups_ * part / call_.split_k * call_.group_size;
    const int64_t end = groups_ * (part + 1) / call_.split_k * call_.group_size;
    const int64_t first = tile * call_.tile_n / kBlockRows;
    const int64_t last = std::min((tile + 1) * call_.tile_n / kBlockRows, blocks_);
    if (call_.unpack_m == 0) return multiply_blocks(first, last, tile_of(begin, end, first, out));
    alignas(64) uint32_t panel[kPanelBlocks * kBlockRows * kPanelColumns];
    const int64_t words = (end - begin) / kWordWeights;
    const int64_t panels = ceil_div(end - begin, kPanelColumns);
    for (int64_t i = 0; i < panels; ++i) {
      const int64_t column = begin + words * i / panels * kWordWeights;
      Tile columns = tile_of(column, begin + words * (i + 1) / panels * kWordWeights, first, out);
      columns.panel = panel;
      columns.add = i > 0;
      for (int64_t block = first; block < last; block += method_.blocks) {
        const int64_t next = std::min(block + method_.blocks, last);
        unpack(block, next, columns, panel);
        multiply_blocks(block, next, columns);
      }
    }
  }

  void unpack(int64_t block, int64_t last, const Tile& columns, uint32_t* panel) {
    const int64_t words = (columns.end - columns.begin) / kWordWeights * method_.words * kBlockRows;
    for (; block < last; ++block, panel += words) kernels_.unpack(at(block, columns), panel);
  }

  void multiply_blocks(int64_t block, int64_t last, const Tile& columns) {
    const int64_t count = ceil_div(tokens_, method_.max_tokens);
    for (int blocks = method_.blocks; blocks >= 1; blocks /= 2) {
      for (; block + blocks <= last; block += blocks) {
        Tile tile = at(block, columns);
        for (int64_t i = 0; i < count; ++i) {
          // Token blocks of nearly equal size: 9 tokens are 5 and 4, not 8 and 1.
          const int64_t size = tokens_ * (i + 1) / count - tokens_ * i / count;
          method_.tile(tile, blocks, static_cast<int>(size));
          tile.x += size * tile.x_stride;
          tile.sums += size * groups_ * method_.sums;
          tile.out += size * tile.out_stride;
        }
      }
    }
  }

  // These columns from block 0 on; `out` is that of block `first`.
  Tile tile_of(int64_t begin, int64_t end, int64_t first, float* out) const {
    Tile tile;
    tile.qweight = static_cast<const int32_t*>(call_.qweight);
    tile.panel = nullptr;
    tile.scales = static_cast<const uint8_t*>(call_.scales);
    tile.zeros = static_cast<const uint8_t*>(call_.zeros);
    tile.dtype = call_.dtype;
    tile.group_size = call_.group_size;
    tile.k = call_.k;
    tile.begin = begin;
    tile.end = end;
    tile.x = x_;
    tile.x_stride = x_stride_;
    tile.sums = sums_;
    tile.out = out - first * kBlockRows;
    tile.out_stride = call_.tile_n;
    tile.add = false;
    return tile;
  }

  // The same from another block on.
  Tile at(int64_t block, Tile tile) const {
    const int64_t grouped = block * groups_ * kBlockRows;
    tile.qweight += block * (call_.k / kWordWeights) * kBlockRows;
    tile.scales += grouped * width_of(call_.dtype);
    if (tile.zeros != nullptr) tile.zeros += grouped;
    tile.out += block * kBlockRows;
    return tile;
  }

  void finish(int64_t tile, const float* in) {
    const int64_t width = width_of(call_.dtype);
    const int64_t row = tile * call_.tile_n;
    const int64_t count = std::min<int64_t>(call_.tile_n, call_.n - row);
    const auto* bias = static_cast<const uint8_t*>(call_.bias);
    for (int64_t token = 0; token < tokens_; ++token) {
      auto* out = static_cast<uint8_t*>(call_.out) + ((first_ + token) * call_.n + row) * width;
      kernels_.finish(in + token * call_.tile_n, call_.split_k, tiles_ * tokens_ * call_.tile_n,
                      bias == nullptr ? nullptr : bias + row * width, call_.dtype, count, out);
    }
  }

  const Matmul& call_;
  const Kernels& kernels_;
  const Method& method_;
  Pool& pool_;
  int64_t groups_, blocks_, tiles_, x_stride_;
  uint32_t* x_;   // [tokens][x_stride]
  float* sums_;   // [tokens][groups][method's sums]
  float* parts_;  // [split_k][tiles][tokens][tile_n]
  int64_t first_ = 0, tokens_ = 0;
};

}  // namespace

void matmul(const Matmul& call) {
  const Kernels& functions = kernels(call.dtype);
  Pool& pool = Pool::instance();
  std::lock_guard<std::mutex> lock(pool.mutex());
  Chunk chunk(call, functions, pool);
  const int64_t step = chunk.most_tokens();
  for (int64_t first = 0; first < call.m; first += step) chunk.run(first, std::min(step, call.m - first));
}

}  // namespace autotune::cpu
