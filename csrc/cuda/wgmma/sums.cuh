// How the sums of wgmma.cu come together: groups along k in the rings' memory, blocks of a cluster by
// st.async.
#pragma once

#include "wgmma/block.cuh"

namespace {

// Where results go, 16 rows from `row` and an octet of tokens at a time.
struct Results {
  u16* out;
  const u16* bias;
  int tokens, n;

  __device__ __forceinline__ void store(float4 v, int row, int octet) const {
    const int g = row + lane() / 4;
    if (bias != nullptr) {
      const float b = g < n ? Type::to_float(bias[g]) : 0.f,
                  b8 = g + 8 < n ? Type::to_float(bias[g + 8]) : 0.f;
      v = v + float4{b, b, b8, b8};
    }
    const u32 low = movmatrix_trans(Type::from_floats(v.x, v.y));
    const u32 high = movmatrix_trans(Type::from_floats(v.z, v.w));
    const int token = octet * 8 + lane() / 4, column = row + lane() % 4 * 2;
    if (token >= tokens) return;
    u16* target = out + static_cast<u64>(token) * n + column;
    if (column < n) *reinterpret_cast<u32*>(target) = low;
    if (column + 8 < n) *reinterpret_cast<u32*>(target + 8) = high;
  }
};

// What a warp does with its sums. Groups along k share the octets out; an octet's sums are added up by one of
// them, and then go to the block that owns the rows, [SPLIT][kOwnRows / 16][kOctets][lane].
struct Sender {
  const Block& block;
  const Results& results;
  int warp, along_n, along_k;

  __device__ __forceinline__ bool is_mine(int octet) const { return octet % GROUPS_K == along_k; }
  __device__ __forceinline__ u32 passed(int from, int f, int octet) const {
    return block.passed(warp + (from - along_k) * GROUPS_N * 4) + (f * kOctets + octet) * kOctetBytes;
  }
  __device__ __forceinline__ static float4 quad(const float (&v)[4]) { return {v[0], v[1], v[2], v[3]}; }

  // Passes on the sums of octets that other groups add up, where the rings were.
  __device__ __forceinline__ void pass(const Sums (&sums)[kFragments]) const {
    bar_sync<kWarps * 32>(kMultiplied);  // all have read the rings
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet)
        if (!is_mine(octet) && octet * 8 < results.tokens)
          st_shared_v4(passed(along_k, f, octet), quad(sums[f][octet]));
    bar_sync<kWarps * 32>(kMultiplied);
  }
  __device__ __forceinline__ float4 add_passed(float4 own, int f, int octet) const {
    float4 v = own;
#pragma unroll
    for (int from = 0; from < GROUPS_K; ++from) {
      const float4 part = from == along_k ? own : ld_shared_v4_f32(passed(from, f, octet));
      v = from == 0 ? part : v + part;
    }
    return v;
  }
  __device__ __forceinline__ void send(const Sums& sums, int f) const {
    const int rank = SPLIT > 1 ? blockIdx.x : 0;
    const int row = (along_n * kFragments + f) * 64 + warp % 4 * 16, owner = row / kOwnRows;
    const u32 own =
        block.sums() + rank * kOwnSumBytes + row % kOwnRows / 16 * kOctets * kOctetBytes + lane() * 16;
    const u32 target = SPLIT > 1 ? mapa(own, owner) : own, sent = SPLIT > 1 ? mapa(block.sent(), owner) : 0;
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      if (!is_mine(octet) || octet * 8 >= results.tokens) continue;
      const float4 v = add_passed(quad(sums[octet]), f, octet);
      if constexpr (SPLIT == 1)
        results.store(v, blockIdx.y * kRows + row, octet);
      else if (owner == rank)
        st_shared_v4(own + octet * kOctetBytes, v);
      else
        st_async_v4(target + octet * kOctetBytes, v, sent);
    }
  }
};

// The rows whose sums the block adds up.
__device__ __forceinline__ int own_rows() {
  return SPLIT > 1 ? min(kOwnRows, max(0, kRows - static_cast<int>(blockIdx.x) * kOwnRows)) : kRows;
}

// The sums of these rows, the first of which is `row0`.
__device__ __forceinline__ void add_sums(const Block& block, const Results& results, int row0) {
  const int octets = (results.tokens + 7) / 8, count = own_rows() / 16 * octets;
#pragma unroll 1
  for (int i = threadIdx.x / 32; i < count; i += kWarps) {
    const int fragment = i / octets, octet = i % octets;
    const u32 at = block.sums() + (fragment * kOctets + octet) * kOctetBytes + lane() * 16;
    float4 v = ld_shared_v4_f32(at);
#pragma unroll
    for (int slot = 1; slot < SPLIT; ++slot) v = v + ld_shared_v4_f32(at + slot * kOwnSumBytes);
    results.store(v, row0 + fragment * 16, octet);
  }
}

// Before sums go to other blocks: all of the cluster have made their barriers and, where sums do not stand
// apart, have read their rings. What they wrote is not yet seen.
__device__ __forceinline__ void meet_blocks() {
  if constexpr (SPLIT > 1) barrier_cluster_wait();
  if constexpr (SPLIT > 1 && !kApart) {
    barrier_cluster_arrive_relaxed();
    barrier_cluster_wait();
  }
}

}  // namespace
