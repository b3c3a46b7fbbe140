// What a launch of toy.cu must have.
#include "common/exported.cuh"
#include "toy.cu"

EXPORT(threads) = kThreads;
EXPORT(grid_x) = ceil_div(LAUNCH_N, ROWS);
EXPORT(grid_y) = LAUNCH_TOKENS;
EXPORT(shared_bytes) = 0;
