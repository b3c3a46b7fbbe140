// How the SPLIT_K blocks of a cluster, which have a slice of the columns of one tile each, add up their sums:
// each block owns some octets of tokens, and the others send it theirs of these, to where its ring was. A
// cluster has one tile, so its barriers are used once.
#pragma once

#include "prefill/results.cuh"

namespace {

constexpr int kOwnOctets =
    (kOctets + SPLIT_K * kTurnedOctets - 1) / (SPLIT_K * kTurnedOctets) * kTurnedOctets;
constexpr int kOwnBytes = kOwnOctets * kWarps * kFragments * kOctetBytes;
static_assert((SPLIT_K - 1) * kOwnBytes <= kTurnedAt, "sums come to where the ring was");

struct Split {
  const Block& block;
  int rank = static_cast<int>(blockIdx.x) % SPLIT_K;

  // The last blocks may own fewer octets, or none.
  __device__ __forceinline__ int begin() const { return min(kOctets, rank * kOwnOctets); }
  __device__ __forceinline__ int end() const { return min(kOctets, (rank + 1) * kOwnOctets); }
  // Where the block `owner` finds what the block `from` sent it of an octet.
  __device__ __forceinline__ u32 at(int from, int owner, int f, int octet) const {
    const int sender = from < owner ? from : from - 1, warp = static_cast<int>(threadIdx.x) / 32;
    return block.base + sender * kOwnBytes +
           ((octet % kOwnOctets * kWarps + warp) * kFragments + f) * kOctetBytes + lane() * 16;
  }
  __device__ __forceinline__ void init() const {
    mbarrier_init(block.met(), kWarps * SPLIT_K);
    mbarrier_init(block.sent(), 1);
  }
  __device__ __forceinline__ void expect() const {
    mbarrier_arrive_expect_tx(block.sent(),
                              (SPLIT_K - 1) * (end() - begin()) * kWarps * kFragments * kOctetBytes);
  }
  // After this no ring of the cluster is read any more.
  __device__ __forceinline__ void meet() const {
    __syncwarp();
    if (lane() < SPLIT_K) mbarrier_arrive_cluster(mapa(block.met(), lane()));
    mbarrier_wait(block.met(), 0);
  }
  __device__ __forceinline__ void send(const Sums (&sums)[kFragments]) const {
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      const int owner = octet / kOwnOctets;
      if (owner == rank) continue;
      const u32 sent = mapa(block.sent(), owner);
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        const float (&v)[4] = sums[f][octet];
        st_async_v4(mapa(at(rank, owner, f, octet), owner), {v[0], v[1], v[2], v[3]}, sent);
      }
    }
  }
  // Makes the sums of the block's own octets those of all blocks, added in the order of their ranks.
  __device__ __forceinline__ void add(Sums (&sums)[kFragments]) const {
    mbarrier_wait(block.sent(), 0);
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet) {
      if (octet / kOwnOctets != rank) continue;
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        const float own[4] = {sums[f][octet][0], sums[f][octet][1], sums[f][octet][2], sums[f][octet][3]};
        float4 v = {};
#pragma unroll
        for (int from = 0; from < SPLIT_K; ++from) {
          const float4 part = from == rank ? float4{own[0], own[1], own[2], own[3]}
                                           : ld_shared_v4_f32(at(from, rank, f, octet));
          v = from == 0 ? part : v + part;
        }
        sums[f][octet][0] = v.x, sums[f][octet][1] = v.y, sums[f][octet][2] = v.z, sums[f][octet][3] = v.w;
      }
    }
  }
};

}  // namespace
