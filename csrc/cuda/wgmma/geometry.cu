// What a launch of wgmma.cu must have, for the test that compares it with autotune/families/wgmma.py.
#include "common/exported.cuh"
#include "wgmma/block.cuh"

EXPORT(threads) = kThreads;
EXPORT(grid_x) = SPLIT;
EXPORT(grid_y) = ceil_div(ceil_div(LAUNCH_N, 64) * 64, kRows);
EXPORT(box_rows) = TILE_M;
// The base is rounded up to 1024 bytes; behind the barriers of the stages is one more.
EXPORT(shared_bytes) = 1024 + kBarrierAt + (kXStages + 1) * 16;
