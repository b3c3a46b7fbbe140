// What a launch of decode.cu must have, for the test that compares it with autotune/families/decode.py.
#include "common/exported.cuh"
#include "decode/decode.cu"

namespace {

constexpr unsigned kMostUnits = ceil_div(ceil_div(LAUNCH_K, 64) / kBlocks, SPLIT);  // of a block
constexpr unsigned kXColumns = kMostUnits * kBlocks * 64 + 8;
constexpr unsigned kSlotBytes = kSlots * LAUNCH_TOKENS * kSumStride * 4;

}  // namespace

EXPORT(threads) = kThreads;
EXPORT(grid_x) = SPLIT;
EXPORT(shared_bytes) = kHeadBytes + kWarps * STAGES * kStageBytes + 2 * kSlotBytes
                       + LAUNCH_TOKENS * kXColumns * 2;
