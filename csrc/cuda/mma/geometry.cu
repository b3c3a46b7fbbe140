// What a launch of mma.cu must have, for the test that compares it with autotune/families/mma.py. Whether x
// stays in shared memory is the launch's argument, and the slices of k are its grid's z.
#include "common/exported.cuh"
#include "mma/mma.cu"

namespace {

constexpr unsigned kTokens = LAUNCH_TOKENS < TILE_M ? LAUNCH_TOKENS : TILE_M;
constexpr unsigned kSteps = ceil_div(ceil_div(ceil_div(LAUNCH_K, 64) / kBlocks, LAUNCH_GRID_Z), WARPS_K);
constexpr unsigned kXBytes = (LAUNCH_ARGUMENT ? kSteps : kRing) * kTokens * kStageStride * 2;
constexpr unsigned kSumBytes = WARPS_K * kTokens * kSumStride * 4;

}  // namespace

EXPORT(threads) = kThreads;
EXPORT(grid_x) = ceil_div(LAUNCH_TOKENS, TILE_M);
EXPORT(grid_y) = ceil_div(ceil_div(LAUNCH_N, 64) * 64, TILE_N);
EXPORT(counter_bytes) = kCounterBytes;
EXPORT(shared_bytes) = kXBytes > kSumBytes ? kXBytes : kSumBytes;
