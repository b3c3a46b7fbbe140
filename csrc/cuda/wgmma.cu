// out[m, n] = x[m, k] @ dequant(w[n, k]).T + bias[n] for 5 to 128 tokens on sm_90a, computed as out^T = w x^T
// by wgmma: weights are the operand A, in registers, x is B, in shared memory.
//
// A block owns kRows rows and one of SPLIT slices of k, the blocks of a cluster. GROUPS_N x GROUPS_K
// warpgroups of FRAGMENTS times 64 rows multiply: those along k take turns with the units (128 columns) of
// the slice. One warp more fetches x, unit by unit, into a ring of STAGES for each group along k. Each of the
// others has a ring of STAGES units of weights, which it fills for itself (a lane reads what it copied), from
// before the kernel ahead on the stream has ended. In the end each warp sends its sums to the blocks of the
// cluster that own the rows. Sums are fp32 and added in a fixed order.
//
// Compile-time: TILE_M (8, 16, 32, 64, 128) FRAGMENTS GROUPS_N GROUPS_K STAGES SPLIT BLOCKS; SCALE_SUMS
// (scales multiply the sums of a group; 0: the weights, rounded once more); GROUP (32, 64, 128; 0 is one
// group of all k); ZERO_POINT; BF16. Every parameter after the tensor map of x is 8 bytes wide.
// autotune/kernels/wgmma.py mirrors the constants.
#include "common/layout.cuh"
#include "common/wgmma.cuh"

namespace {

constexpr int kFragments = FRAGMENTS;
constexpr int kOctets = TILE_M / 8;
constexpr int kWarps = GROUPS_N * GROUPS_K * 4;
constexpr int kThreads = kWarps * 32 + 32;
constexpr int kRows = GROUPS_N * kFragments * 64;
constexpr int kSlots = GROUPS_K * SPLIT;                         // sums of each row
constexpr int kOwnRows = (kRows / 16 + SPLIT - 1) / SPLIT * 16;  // the last blocks of a cluster may own fewer
constexpr int kParts = GROUP == 32 ? 4 : GROUP == 64 ? 2 : 1;    // groups of a unit
constexpr int kXBlockBytes = TILE_M * 128;
constexpr int kXStageBytes = 2 * kXBlockBytes;
constexpr int kGroupBytes = 64;  // scale pairs of a warp's 16 rows, then zero words
constexpr int kFragmentBytes = 1024 + kParts * kGroupBytes;
constexpr int kStageBytes = kFragments * kFragmentBytes;
constexpr int kXStages = STAGES * GROUPS_K;
constexpr int kRingBytes = kXStages * kXStageBytes + kWarps * STAGES * kStageBytes;
constexpr int kSumStride = TILE_M + 10;  // a warp's stores of its sums fall into different banks
constexpr int kSumBytes = kSlots * kOwnRows * kSumStride * 4;
// Sums beside the rings need not wait until all have read theirs; where they are large, that costs a block.
constexpr bool kApart = GROUPS_K * kRows * kSumStride * 4 <= 24 << 10;
constexpr int kSumAt = kApart ? kRingBytes : 0;
constexpr int kBarrierAt = kApart ? kRingBytes + kSumBytes : kRingBytes > kSumBytes ? kRingBytes : kSumBytes;

using Sums = float[kOctets][4];

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }

// All blocks of the cluster have come this far; what they wrote is not yet seen.
__device__ __forceinline__ void meet_blocks() {
  if constexpr (SPLIT > 1) {
    barrier_cluster_arrive_relaxed();
    barrier_cluster_wait();
  } else {
    __syncthreads();
  }
}

// The block's units of k, and what stands where in its shared memory.
struct Block {
  u32 base;
  int begin, count;

  __device__ __forceinline__ u32 x(int stage) const { return base + stage * kXStageBytes; }
  __device__ __forceinline__ u32 weights(int warp) const {
    return base + kXStages * kXStageBytes + warp * STAGES * kStageBytes;
  }
  __device__ __forceinline__ u32 sums() const { return base + kSumAt; }
  // x has come, x has been read, sums have come.
  __device__ __forceinline__ u32 full(int stage) const { return base + kBarrierAt + stage * 16; }
  __device__ __forceinline__ u32 empty(int stage) const { return full(stage) + 8; }
  __device__ __forceinline__ u32 sent() const { return full(kXStages); }
};

// The rows whose sums the block adds up.
__device__ __forceinline__ int own_rows() {
  return SPLIT > 1 ? min(kOwnRows, max(0, kRows - static_cast<int>(blockIdx.x) * kOwnRows)) : kRows;
}

// Copies a warp's weights, unit by unit. Lane i copies a scale pair or a zero word too: row g, part,
// fragment.
struct Writer {
  static constexpr int kWords = kFragments * kParts * 16;
  static constexpr int kRounds = (kWords + 31) / 32;
  const uint4* words[kFragments];
  const u32* groups[kRounds];
  int step;  // words from the groups of a unit to those of the warp's next

  __device__ __forceinline__ static int item(int round) { return round * 32 + lane(); }
  __device__ __forceinline__ static bool is_zero() { return lane() / 8 % 2 != 0; }

  __device__ __forceinline__ Writer(const PackedWeight& weight, int nb, int fragment, int unit) {
    step = GROUP == 0 ? 0 : kParts * GROUPS_K * weight.n64 * (is_zero() ? 8 : 32);
#pragma unroll
    for (int f = 0; f < kFragments; ++f)  // rows past the last block repeat it
      words[f] = weight.fragment(min(nb + f, weight.n64 - 1), 2 * unit, fragment, lane());
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int i = item(round), g = i % 8, part = i / 16 % kParts, f = min(i / 16 / kParts, kFragments - 1);
      const long long group = GROUP == 0 ? 0 : static_cast<long long>(unit) * kParts + part;
      const long long at = (group * weight.n64 + min(nb + f, weight.n64 - 1)) * 8 + g;
      groups[round] =
          is_zero() ? weight.zeros + at : reinterpret_cast<const u32*>(weight.scales) + at * 4 + fragment;
    }
  }
  // A `half` unit has one block of 64 columns; what is copied for the other meets x of zero.
  __device__ __forceinline__ void copy_unit(u32 target, bool half) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      cp_async_cg(target + f * kFragmentBytes + lane() * 16, words[f], 16);
      cp_async_cg(target + f * kFragmentBytes + 512 + lane() * 16, words[f] + (half ? 0 : 128), 16);
      words[f] += GROUPS_K * 256;
    }
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int i = item(round), part = i / 16 % kParts, f = i / 16 / kParts;
      const u32* source = groups[round];
      if (kParts > 1 && half && part >= kParts / 2) source -= step / GROUPS_K / 2;
      if (i < kWords && (ZERO_POINT || !is_zero()))
        cp_async_ca_4(target + f * kFragmentBytes + 1024 + part * kGroupBytes + i % 16 * 4, source);
      groups[round] += step;
    }
  }
};

struct Group {
  u32 scales;
  Zeros zeros;
};

__device__ __forceinline__ Group load_group(u32 stage, int f, int part, int fragment) {
  const u32 at = stage + f * kFragmentBytes + 1024 + part * kGroupBytes + lane() / 4 * 4;
  return {ld_shared(at),
          fragment_zeros(ZERO_POINT ? ld_shared(at + 32) : kSymmetricZero * 0x11111111u, fragment)};
}

__device__ __forceinline__ uint4 operand(u32 word, const Group& group) {
  const uint4 a = Type::dequantize(word, group.zeros);
  return SCALE_SUMS ? a : scale_fragment(a, group.scales);
}

// Keeps what reads sums behind the wait for them.
__device__ __forceinline__ void settle(Sums (&sums)[kFragments]) {
#pragma unroll
  for (int f = 0; f < kFragments; ++f)
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet)
#pragma unroll
      for (int i = 0; i < 4; ++i) keep(sums[f][octet][i]);
}

__device__ __forceinline__ void add_scaled(Sums& sums, const Sums& parts, u32 scales) {
  const float g = Type::to_float(static_cast<u16>(scales)),
              g8 = Type::to_float(static_cast<u16>(scales >> 16));
#pragma unroll
  for (int octet = 0; octet < kOctets; ++octet)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[octet][i] = fmaf(parts[octet][i], i < 2 ? g : g8, sums[octet][i]);
}

// K-major, swizzled by 128 bytes, 1024 bytes from eight tokens to the next eight. The low word is that of a
// stage, made the same in all lanes, which spares a move to uniform registers per product; no offset carries.
__device__ __forceinline__ u32 descriptor_low(u32 shared) {
  return __shfl_sync(0xFFFFFFFFu, (shared >> 4) + (1u << 16), 0);
}
__device__ __forceinline__ u64 descriptor(u32 low, u32 offset) {
  return static_cast<u64>(64u | 1u << 30) << 32 | (low + offset / 16);
}

// The products of 32 columns, which are under way when it returns; `fresh` sums start from zero.
__device__ __forceinline__ void start_products(Sums (&sums)[kFragments], const uint4 (&a)[kFragments][2],
                                               u32 low, int step, bool fresh) {
  wgmma_fence();
#pragma unroll
  for (int s = 0; s < 2; ++s)
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const u64 b = descriptor(low, step / 2 * kXBlockBytes + (step % 2 * 2 + s) * 32);
#if BF16
      wgmma_bf16(sums[f], a[f][s], b, !(fresh && s == 0));
#else
      wgmma_f16(sums[f], a[f][s], b, !(fresh && s == 0));
#endif
    }
  wgmma_commit_group();
}

struct Consumer {
  const Block& block;
  Writer& writer;
  int fragment;
  Sums sums[kFragments];
  uint4 a[2][kFragments][2];

  // The warp has read a stage of x.
  __device__ __forceinline__ void release(int stage) const {
    if (lane() == 0) mbarrier_arrive(block.empty(stage));
  }

  // A unit in four steps of 32 columns: the products of one are under way while the next is dequantised.
  // Unless SCALE_SUMS, those of the last still are at the end, and `previous` is the stage of x of the unit
  // before, to be released once its products have ended, or -1. `refill`: 0, or the halves of the unit that
  // takes its place.
  __device__ __forceinline__ void multiply_unit(u32 stage, u32 x, int previous, int refill) {
    constexpr int kPartSteps = 4 / kParts;
    const u32 low = descriptor_low(x);
    Group groups[kParts][kFragments];
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int f = 0; f < kFragments; ++f) groups[part][f] = load_group(stage, f, part, fragment);
    uint4 words[kFragments];
    Sums parts[kFragments];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const Group(&group)[kFragments] = groups[step / kPartSteps];
      if (step % 2 == 0) {
#pragma unroll
        for (int f = 0; f < kFragments; ++f)
          words[f] = ld_shared_v4(stage + f * kFragmentBytes + step / 2 * 512 + lane() * 16);
      }
      if (step == 2) {
        __syncwarp();
        if (refill) writer.copy_unit(stage, refill == 1);
        cp_async_commit_group();
      }
      wgmma_wait_group<1>();
      if (!SCALE_SUMS && step == 1 && previous >= 0) release(previous);
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        a[step % 2][f][0] = operand(step % 2 ? words[f].z : words[f].x, group[f]);
        a[step % 2][f][1] = operand(step % 2 ? words[f].w : words[f].y, group[f]);
      }
      if constexpr (!SCALE_SUMS) {
        start_products(sums, a[step % 2], low, step, false);
      } else {
        start_products(parts, a[step % 2], low, step, step % kPartSteps == 0);
        if (step % kPartSteps < kPartSteps - 1) continue;
        wgmma_wait_group<0>();
        settle(parts);
#pragma unroll
        for (int f = 0; f < kFragments; ++f) add_scaled(sums[f], parts[f], group[f].scales);
      }
    }
  }
};

// x for all units, through the ring.
__device__ __forceinline__ void fetch_x(const Block& block, const TensorMap* x) {
  if (lane() == 0) prefetch_tensor_map(x);
  griddepcontrol_wait();
  if (lane() != 0) return;
  int stage = 0, parity = 1;
#pragma unroll 1
  for (int unit = 0; unit < block.count; ++unit) {
    if (unit >= kXStages) mbarrier_wait(block.empty(stage), parity);
    const int column = (block.begin + unit) * 128;
    mbarrier_arrive_expect_tx(block.full(stage), kXStageBytes);
    cp_async_bulk_tensor_2d(block.x(stage), x, column, 0, block.full(stage));
    cp_async_bulk_tensor_2d(block.x(stage) + kXBlockBytes, x, column + 64, 0, block.full(stage));
    if (++stage == kXStages) stage = 0, parity ^= 1;
  }
}

// A warp's sums to the blocks that own their rows, [kSlots][kOwnRows][kSumStride].
__device__ __forceinline__ void send_sums(const Block& block, const Sums (&sums)[kFragments], int tokens) {
  const int warp = threadIdx.x / 32, group = warp / 4;
  const int slot = (SPLIT > 1 ? blockIdx.x : 0) * GROUPS_K + group / GROUPS_N;
#pragma unroll
  for (int f = 0; f < kFragments; ++f) {
    const int row = (group % GROUPS_N * kFragments + f) * 64 + warp % 4 * 16;
    const u32 own =
        block.sums() + ((slot * kOwnRows + row % kOwnRows + lane() / 4) * kSumStride + lane() % 4 * 2) * 4;
    const u32 target = SPLIT > 1 ? mapa(own, row / kOwnRows) : own;
    const u32 sent = SPLIT > 1 ? mapa(block.sent(), row / kOwnRows) : 0;
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const u32 at = target + octet * 32 + half * 8 * kSumStride * 4;
        if (octet * 8 >= tokens) continue;
        if constexpr (SPLIT > 1)
          st_async_v2(at, sums[f][octet][half * 2], sums[f][octet][half * 2 + 1], sent);
        else
          st_shared_v2(at, sums[f][octet][half * 2], sums[f][octet][half * 2 + 1]);
      }
  }
}

// The sums of the rows that this block owns, the first of which is `row0`.
__device__ __forceinline__ void add_slots(u32 slots, u16* out, const u16* bias, int tokens, int row0, int n) {
  constexpr int kQuads = kOwnRows / 4;
  for (int i = threadIdx.x; i < kQuads * TILE_M; i += kThreads) {
    const int token = i % 8 + i / 8 / kQuads * 8, quad = i / 8 % kQuads, row = row0 + quad * 4;
    if (token >= tokens || row >= n || quad * 4 >= own_rows()) continue;
    float v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const u32 at = slots + ((quad * 4 + j) * kSumStride + token) * 4;
      v[j] = __uint_as_float(ld_shared(at));
#pragma unroll
      for (int slot = 1; slot < kSlots; ++slot)
        v[j] += __uint_as_float(ld_shared(at + slot * kOwnRows * kSumStride * 4));
      if (bias != nullptr) v[j] += Type::to_float(bias[row + j]);
    }
    *reinterpret_cast<uint2*>(out + static_cast<u64>(token) * n + row) = {Type::from_floats(v[0], v[1]),
                                                                          Type::from_floats(v[2], v[3])};
  }
}

__device__ __forceinline__ void multiply(const Block& block, const PackedWeight& weight, int tokens) {
  const int warp = threadIdx.x / 32, fragment = warp % 4, group = warp / 4, along_k = group / GROUPS_N;
  const int units = (block.count - along_k + GROUPS_K - 1) / GROUPS_K, first = block.begin + along_k;
  const u32 ring = block.weights(warp);
  const bool odd = 2 * (first + (units - 1) * GROUPS_K) + 1 == weight.k64;  // the last unit is half a one
  Writer writer(weight, (blockIdx.y * GROUPS_N + group % GROUPS_N) * kFragments, fragment, first);
#pragma unroll 1
  for (int unit = 0; unit < STAGES; ++unit) {
    if (unit < units) writer.copy_unit(ring + unit * kStageBytes, odd && unit == units - 1);
    cp_async_commit_group();
  }

  meet_blocks();
  mbarrier_wait(block.full(along_k), 0);
  griddepcontrol_launch_dependents();  // later than at the top: whoever waits here may still be read by it

  Consumer consumer{block, writer, fragment, {}};
  u32 stage = ring;
  int at = along_k, parity = 0, previous = -1;
#pragma unroll 1
  for (int unit = 0; unit < units; ++unit) {
    mbarrier_wait(block.full(at), parity);
    cp_async_wait_group<STAGES - 1>();
    __syncwarp();
    const int next = unit + STAGES;
    const int refill = next < units ? odd && next == units - 1 ? 1 : 2 : 0;
    consumer.multiply_unit(stage, block.x(at), previous, refill);
    if (SCALE_SUMS && refill) consumer.release(at);
    previous = refill ? at : -1;
    stage += kStageBytes;
    at += GROUPS_K;
    if (at >= kXStages) at = along_k, parity ^= 1, stage = ring;
  }
  wgmma_wait_group<0>();
  settle(consumer.sums);
  if constexpr (!kApart) meet_blocks();
  send_sums(block, consumer.sums, tokens);
}

__device__ __forceinline__ void init_barriers(const Block& block, int tokens) {
#pragma unroll
  for (int stage = 0; stage < kXStages; ++stage) {
    mbarrier_init(block.full(stage), 1);
    mbarrier_init(block.empty(stage), GROUPS_N * 4);
  }
  if constexpr (SPLIT > 1) mbarrier_init(block.sent(), 1);
  fence_mbarrier_init();
  if constexpr (SPLIT > 1)
    mbarrier_arrive_expect_tx(block.sent(), kSlots * own_rows() * ((tokens + 7) / 8) * 32);
}

}  // namespace

extern "C" __global__ void
#if SPLIT > 1
__cluster_dims__(SPLIT, 1, 1)
#endif
    __launch_bounds__(kThreads, BLOCKS)
        int4_wgmma(const __grid_constant__ TensorMap x, const uint4* qweight, const u16* scales,
                   const u32* zeros, const u16* bias, u16* out, long long m, long long n, long long k) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const PackedWeight weight{qweight, scales, zeros, static_cast<int>((n + 63) / 64),
                            static_cast<int>((k + 63) / 64)};
  const int rank = SPLIT > 1 ? blockIdx.x : 0, units = (weight.k64 + 1) / 2, tokens = static_cast<int>(m);
  const int begin = units * rank / SPLIT, end = units * (rank + 1) / SPLIT;
  const Block block{(shared_address(shared) + 1023) / 1024 * 1024, begin, end - begin};
  if (threadIdx.x / 32 == kWarps) {
    if (lane() == 0) init_barriers(block, tokens);
    __syncwarp();
    meet_blocks();
    fetch_x(block, &x);
    __syncwarp();
    griddepcontrol_launch_dependents();
    if constexpr (!kApart) meet_blocks();
  } else {
    multiply(block, weight, tokens);
  }
  if constexpr (SPLIT > 1)
    mbarrier_wait(block.sent(), 0);
  else
    __syncthreads();
  add_slots(block.sums(), out, bias, tokens, blockIdx.y * kRows + rank * kOwnRows, static_cast<int>(n));
}
