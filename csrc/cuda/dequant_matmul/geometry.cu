// What the first launch of dequant_matmul.cu must have, for the test that compares it with
// autotune/families/dequant_matmul.py. A block has 64 x 64 weights, as its shared tile does.
#include "common/exported.cuh"
#include "dequant_matmul/dequant_matmul.cu"

namespace {

constexpr unsigned kSide = kStride - 8;

}  // namespace

EXPORT(threads) = kSide / 16 * 32;  // each warp has 16 rows
EXPORT(grid_x) = ceil_div(LAUNCH_K, kSide);
EXPORT(shared_bytes) = 0;
