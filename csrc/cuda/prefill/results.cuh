// Where the sums of prefill.cu go: those of a worker that does not own the tile to the one that does, in
// fp32, by way of the workspace; those of a whole tile to out, with the bias, rounded to 16 bits.
//
// The columns of out may be parts, those of several linears in one: n1 and n2 are where the second and the
// third begin, n where there is none. Parts lie one after the other, each [m, its columns].
#pragma once

#include "prefill/work.cuh"

namespace {

// 16 bytes of results of a thread, eight columns n.
__device__ __forceinline__ void st_global_v4(void* target, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(target), "r"(v.x), "r"(v.y), "r"(v.z),
               "r"(v.w)
               : "memory");
}

// Four 8x8 matrices of 16-bit values, transposed; lanes 8i to 8i+7 name the rows of matrix i.
__device__ __forceinline__ void stmatrix_x4_trans(u32 shared, uint4 v) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared),
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

__device__ __forceinline__ void st_release(u32* target, u32 v) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(target), "r"(v) : "memory");
}
__device__ __forceinline__ u32 ld_acquire(const u32* source) {
  u32 v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(source) : "memory");
  return v;
}

__device__ __forceinline__ void add_quad(float (&to)[4], float4 v) {
  to[0] += v.x, to[1] += v.y, to[2] += v.z, to[3] += v.w;
}

// The workspace: a flag for each warp that multiplies, zero between launches, and one tile of sums for each
// block. That is enough, because only a worker's first piece of the row can be of a tile that it does not
// own. Sums stay as lanes have them: the same warp of the owner adds them, so no other order is needed.
struct Partials {
  u32* counters;
  float4* sums;

  __device__ __forceinline__ int slot(int worker) const {
    const int rank = CLUSTER > 1 ? static_cast<int>(blockIdx.x) % CLUSTER : 0;
    return (worker * CLUSTER + rank) * kWarps + static_cast<int>(threadIdx.x) / 32;
  }
  __device__ __forceinline__ float4* of(int worker) const {
    return sums + static_cast<u64>(slot(worker)) * kFragments * kOctets * 32 + lane();
  }
  __device__ __forceinline__ void leave(int worker, const Sums (&from)[kFragments]) const {
    float4* to = of(worker);
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet) {
        const float (&v)[4] = from[f][octet];
        st_global_cg(to + (f * kOctets + octet) * 32, {v[0], v[1], v[2], v[3]});
      }
    __syncwarp();
    if (lane() == 0) st_release(counters + slot(worker), 1);
  }
  __device__ __forceinline__ void add(int worker, Sums (&to)[kFragments]) const {
    u32* counter = counters + slot(worker);
    while (ld_acquire(counter) == 0) {
    }
    __syncwarp();
    if (lane() == 0) *counter = 0;
    const float4* from = of(worker);
    constexpr int kAtOnce = kOctets % 8 == 0 ? 8 : 2;  // loads under way
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int octet = 0; octet < kOctets; octet += kAtOnce) {
        float4 v[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) v[i] = ld_global_cg(from + (f * kOctets + octet + i) * 32);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) add_quad(to[f][octet + i], v[i]);
      }
  }
  // Adds the sums of all higher workers that have columns of the tile, in their order.
  __device__ __forceinline__ void add_all(const Work& work, const Piece& piece,
                                          Sums (&to)[kFragments]) const {
#pragma unroll 1
    for (int other = work.worker + 1; work.share(other) < piece.stream_end; ++other)
      if (work.share(other + 1) > work.share(other)) add(other, to);
  }
};

struct Results {
  u16* out;
  const u16* bias;
  int tokens, n, n1, n2;
  u32 turn = 0;

  __device__ __forceinline__ float bias_of(int row) const {
    return bias != nullptr && row < n ? Type::to_float(bias[row]) : 0.f;
  }

  // A lane's sums are of few tokens and rows each; out wants whole lines of a token. So a warpgroup
  // transposes some octets of tokens through shared memory, [token][rows of the warpgroup]. Chunks of 16
  // bytes are swizzled, so that neither side meets a bank twice.
  static constexpr int kChunks = kFragments * 8;  // of a token
  __device__ __forceinline__ static u32 at(u32 buffer, int token, int chunk) {
    return buffer + token * kChunks * 16 + (chunk ^ token % 8) * 16;
  }
  __device__ __forceinline__ void turn_octets(u32 buffer, const Sums (&sums)[kFragments], int octet0,
                                              int row0) const {
    const int warp = threadIdx.x / 32 % 4;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const int row = row0 + f * 64 + warp * 16 + lane() / 4;
      const float b = bias_of(row), b8 = bias_of(row + 8);
#pragma unroll
      for (int i = 0; i < kTurnedOctets; i += 2) {
        if (octet0 + i >= kOctets) continue;
        const float (&v)[4] = sums[f][octet0 + i], (&w)[4] = sums[f][octet0 + i + 1];
        const int token = i * 8 + lane() / 16 * 8 + lane() % 8, chunk = f * 8 + warp * 2 + lane() / 8 % 2;
        stmatrix_x4_trans(at(buffer, token, chunk),
                          {Type::from_floats(v[0] + b, v[1] + b), Type::from_floats(v[2] + b8, v[3] + b8),
                           Type::from_floats(w[0] + b, w[1] + b), Type::from_floats(w[2] + b8, w[3] + b8)});
      }
    }
  }
  // Results of the octets from `begin` to `end`. A thread stores a chunk of every few tokens.
  __device__ __forceinline__ void store(const Block& block, const Sums (&sums)[kFragments], int row0,
                                        int token0, int begin = 0, int end = kOctets) {
    constexpr int kStride = 128 / kChunks;  // tokens that a warpgroup stores at once
    const int warpgroup = threadIdx.x / 128, chunk = threadIdx.x % kChunks, column = row0 + chunk * 8;
    const int of = static_cast<int>(threadIdx.x) % 128 / kChunks;  // the thread's token of these
    const int part = column >= n2 ? n2 : column >= n1 ? n1 : 0;
    const int width = (column >= n2 ? n : column >= n1 ? n2 : n1) - part;
    u16* to = out + static_cast<u64>(tokens) * part + static_cast<u64>(token0 + of) * width + (column - part);
    const int left = column < n ? tokens - token0 - of : 0;
#pragma unroll
    for (int octet = 0; octet < kOctets; octet += kTurnedOctets) {
      if (octet < begin || octet >= end || token0 + octet * 8 >= tokens) continue;
      const u32 buffer = block.turned(warpgroup, turn++);
      turn_octets(buffer, sums, octet, row0);
      bar_sync<128>(1 + warpgroup);
#pragma unroll
      for (int token = 0; token < min(kTurnedOctets, kOctets - octet) * 8; token += kStride)
        if (octet * 8 + token < left)
          st_global_v4(to + static_cast<u64>(octet * 8 + token) * width,
                       ld_shared_v4(at(buffer, token + of, chunk)));
    }
  }
};

}  // namespace
