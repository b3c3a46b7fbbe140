// What stands where in the shared memory of a block of prefill.cu; autotune/families/prefill.py mirrors the
// constants. In this order:
//
//   STAGES times: x, TILE_M tokens of 64 columns; words, kRowBlocks blocks of 64 rows and 64 columns
//   WARPGROUPS times: two buffers, in which results are transposed
//   barriers: full and empty of each stage, and two more with SPLIT_K
//
// With SPLIT_K, sums of the other blocks come to where the ring was (prefill/split.cuh).
#pragma once

#include "common/layout.cuh"
#include "common/products.cuh"
#include "common/wgmma.cuh"

namespace {

constexpr int kFragments = FRAGMENTS;                // of 64 rows, of a warpgroup
constexpr int kOctets = TILE_M / 8;                  // of tokens
constexpr int kWarps = WARPGROUPS * 4;               // that multiply
constexpr int kThreads = WARPGROUPS * 128 + 128;     // one warpgroup more, of which one thread copies
constexpr int kRowBlocks = WARPGROUPS * kFragments;  // of 64 rows, of the block
constexpr int kBlocks = CLUSTER * SPLIT_K;           // of a cluster
constexpr int kXBytes = TILE_M * 128;                // a unit of 64 columns
constexpr int kWordBytes = kRowBlocks * 2048;
constexpr int kStageBytes = kXBytes + kWordBytes;
// Octets of tokens whose results a warpgroup transposes at once, and the buffer for them; it has two.
constexpr int kTurnedOctets = 4 / kFragments;
constexpr int kTurnedBytes = 4096;
constexpr int kTurnedAt = STAGES * kStageBytes;
constexpr int kBarrierAt = kTurnedAt + 2 * WARPGROUPS * kTurnedBytes;
constexpr int kOctetBytes = 512;  // sums of 16 rows and eight tokens, as the lanes of a warp have them
static_assert(CLUSTER == 1 || SPLIT_K == 1, "blocks that share x have the same columns");
static_assert(SPLIT_K == 1 || !STREAM_K, "columns are shared out once");

using Sums = float[kOctets][4];

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }

struct Block {
  u32 base;

  __device__ __forceinline__ u32 x(int stage) const { return base + stage * kStageBytes; }
  __device__ __forceinline__ u32 words(int stage) const { return x(stage) + kXBytes; }
  __device__ __forceinline__ u32 turned(int warpgroup, u32 turn) const {
    return base + kTurnedAt + (2 * warpgroup + turn % 2) * kTurnedBytes;
  }
  // Barriers of a stage: it has come; the warps of all blocks that this one copies to have read it.
  __device__ __forceinline__ u32 full(int stage) const { return base + kBarrierAt + stage * 16; }
  __device__ __forceinline__ u32 empty(int stage) const { return full(stage) + 8; }
  // Barriers of SPLIT_K: all blocks have multiplied; the sums of the others have come.
  __device__ __forceinline__ u32 met() const { return full(STAGES); }
  __device__ __forceinline__ u32 sent() const { return empty(STAGES); }
};

// Where a thread or warp is in the ring: the stage, and the parity of its barriers' phase.
struct Ring {
  int stage = 0;
  u32 parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

}  // namespace
