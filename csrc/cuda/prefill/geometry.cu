// What a launch of prefill.cu must have, for the test that compares it with autotune/families/prefill.py.
#include "common/exported.cuh"
#include "prefill/work.cuh"

EXPORT(threads) = kThreads;
EXPORT(box_rows) = TILE_M / CLUSTER;
// The base is rounded up to 1024 bytes; behind the barriers of the stages are two more.
EXPORT(shared_bytes) = 1024 + kBarrierAt + (STAGES + 1) * 16;
