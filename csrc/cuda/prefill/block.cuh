// What stands where in the shared memory of a block of prefill.cu; autotune/kernels/prefill.py mirrors the
// constants.
#pragma once

#include "common/layout.cuh"
#include "common/products.cuh"
#include "common/wgmma.cuh"

namespace {

constexpr int kFragments = FRAGMENTS;
constexpr int kOctets = TILE_M / 8;
constexpr int kWarps = WARPGROUPS * 4;               // that multiply
constexpr int kThreads = WARPGROUPS * 128 + 128;     // a warpgroup more, one thread of which copies
constexpr int kRowBlocks = WARPGROUPS * kFragments;  // of 64 rows
constexpr int kBlocks = CLUSTER * SPLIT_K;           // of a cluster
constexpr int kXBytes = TILE_M * 128;                // a unit of 64 columns
constexpr int kWordBytes = kRowBlocks * 2048;
constexpr int kStageBytes = kXBytes + kWordBytes;
// Octets of tokens whose results a warpgroup turns around at once, and the buffer for them, of which it has
// two.
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
  // A stage has come, a stage has been read by the blocks of the cluster.
  __device__ __forceinline__ u32 full(int stage) const { return base + kBarrierAt + stage * 16; }
  __device__ __forceinline__ u32 empty(int stage) const { return full(stage) + 8; }
  // SPLIT_K: all blocks have multiplied, sums have come.
  __device__ __forceinline__ u32 met() const { return full(STAGES); }
  __device__ __forceinline__ u32 sent() const { return empty(STAGES); }
};

// Stages in a ring, and the parity of the turn.
struct Ring {
  int stage = 0;
  u32 parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

}  // namespace
