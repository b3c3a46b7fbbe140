// What stands where in the shared memory of a block of wgmma.cu; autotune/families/wgmma.py mirrors the
// constants.
#pragma once

#include "common/layout.cuh"
#include "common/products.cuh"
#include "common/wgmma.cuh"

namespace {

constexpr int kFragments = FRAGMENTS;
constexpr int kOctets = TILE_M / 8;
constexpr int kWarps = GROUPS_N * GROUPS_K * 4;
constexpr int kThreads = kWarps * 32 + 32;
constexpr int kRows = GROUPS_N * kFragments * 64;
constexpr int kOwnRows = (kRows / 16 + SPLIT - 1) / SPLIT * 16;  // the last blocks of a cluster may own fewer
constexpr int kParts = GROUP == 32 ? 4 : GROUP == 64 ? 2 : 1;    // groups of a unit
constexpr int kPartSteps = 4 / kParts;
constexpr int kXBlockBytes = TILE_M * 128;
constexpr int kXStageBytes = 2 * kXBlockBytes;
constexpr int kGroupBytes = 64;  // scale pairs of a warp's 16 rows, then zero words
constexpr int kFragmentBytes = 1024 + kParts * kGroupBytes;
constexpr int kStageBytes = kFragments * kFragmentBytes;
// Blocks for many tokens start when those of the kernel ahead have ended, and then x is what they wait for.
constexpr int kMostAhead = TILE_M == 8 ? 6 : TILE_M <= 32 ? 2 : 1;
constexpr int kAhead = kMostAhead < STAGES ? kMostAhead : STAGES;
constexpr int kXStages = STAGES * GROUPS_K;
constexpr int kRingBytes = kXStages * kXStageBytes + kWarps * STAGES * kStageBytes;
constexpr int kOctetBytes = 512;  // sums of 16 rows and eight tokens, as the lanes of a warp have them
constexpr int kOwnSumBytes = kOwnRows / 16 * kOctets * kOctetBytes;
constexpr int kSumBytes = SPLIT == 1 ? 0 : SPLIT * kOwnSumBytes;
constexpr int kPassedBytes = GROUPS_K == 1 ? 0 : kWarps * kFragments * kOctets * kOctetBytes;
// Sums beside the rings need not wait until all blocks have read theirs; where they are large, that costs a
// block.
constexpr bool kApart = kRows * TILE_M * 4 <= 24 << 10;
constexpr int kSumAt = kApart ? kRingBytes : 0;
constexpr int kPassedAt = kApart ? 0 : kSumBytes;
constexpr int kBarrierAt = kApart ? kRingBytes + kSumBytes : kRingBytes > kSumBytes ? kRingBytes : kSumBytes;
static_assert(kPassedAt + kPassedBytes <= kRingBytes, "groups along k add up where the rings were");

// Named barriers of a block: x has been asked for, all groups have come this far with their sums.
constexpr int kAsked = 1, kMultiplied = 2;

using Sums = float[kOctets][4];

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }

// The block's units of k, and what stands where in its shared memory.
struct Block {
  u32 base;
  int begin, count;

  __device__ __forceinline__ u32 x(int stage) const { return base + stage * kXStageBytes; }
  __device__ __forceinline__ u32 weights(int warp) const {
    return base + kXStages * kXStageBytes + warp * STAGES * kStageBytes;
  }
  __device__ __forceinline__ u32 sums() const { return base + kSumAt; }
  // What a warp leaves to the other groups along k.
  __device__ __forceinline__ u32 passed(int warp) const {
    return base + kPassedAt + warp * kFragments * kOctets * kOctetBytes + lane() * 16;
  }
  // x has come, x has been read, sums have come.
  __device__ __forceinline__ u32 full(int stage) const { return base + kBarrierAt + stage * 16; }
  __device__ __forceinline__ u32 empty(int stage) const { return full(stage) + 8; }
  __device__ __forceinline__ u32 sent() const { return full(kXStages); }
};

}  // namespace
