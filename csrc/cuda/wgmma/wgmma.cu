// out[m, n] = x[m, k] @ dequant(w[n, k]).T + bias[n] for 5 to 512 tokens on sm_90a, up to 128 a launch, as
// out^T = w x^T by wgmma: weights are the operand A, in registers, x is B, in shared memory.
//
// A block owns kRows rows and one of SPLIT slices of k, the blocks of a cluster. GROUPS_N x GROUPS_K
// warpgroups of FRAGMENTS times 64 rows multiply: those along k take turns with the units (128 columns) of
// the slice. One warp more fetches x, unit by unit, into a ring of STAGES for each group along k. Each of the
// others has a ring of STAGES units of weights, which it fills for itself: kAhead of them from before the
// kernel ahead on the stream has ended, the rest once x has been asked for. In the end groups along k add up
// their sums where the rings were, and each warp sends what came of it to the blocks of the cluster that own
// the rows. Sums are fp32 and added in a fixed order.
//
// Compile-time: TILE_M (a multiple of 8 up to 128) FRAGMENTS GROUPS_N GROUPS_K STAGES SPLIT BLOCKS;
// SCALE_SUMS (scales multiply the sums of a group; 0: the weights, rounded once more); GROUP (32, 64, 128; 0
// is one group of all k); ZERO_POINT; BF16. Every parameter after the tensor map of x is 8 bytes wide.
#include "wgmma/block.cuh"
#include "wgmma/sums.cuh"

namespace {

// Copies a warp's weights, unit by unit. Half of the lanes copy the scale pairs and zero words of eight rows
// g too, the other half those of the next group, or of the other fragment if a unit has one group.
struct Writer {
  static constexpr int kPointers = kParts == 1 ? 1 : kFragments;
  const uint4* words[kFragments];
  const u32* groups[kPointers];
  int step;  // words from one group to the next

  __device__ __forceinline__ static bool is_zero() { return lane() / 8 % 2 != 0; }
  __device__ __forceinline__ static bool is_idle() {
    return (!ZERO_POINT && is_zero()) || (kFragments * kParts == 1 && lane() >= 16);
  }
  __device__ __forceinline__ static int part() { return kParts == 1 ? 0 : lane() / 16; }
  __device__ __forceinline__ static int fragment_of(int pointer) {
    return kParts == 1 ? lane() / 16 % kFragments : pointer;
  }

  __device__ __forceinline__ Writer(const PackedWeight& weight, int nb, int fragment, int unit) {
    const auto block = [&](int f) { return min(nb + f, weight.n64 - 1); };  // rows past the last repeat it
#pragma unroll
    for (int f = 0; f < kFragments; ++f) words[f] = weight.fragment(block(f), 2 * unit, fragment, lane());
    step = GROUP == 0 ? 0 : weight.n64 * (is_zero() ? 8 : 32);
    const u32* scales = reinterpret_cast<const u32*>(weight.scales);
#pragma unroll
    for (int i = 0; i < kPointers; ++i) {
      const int g = block(fragment_of(i)) * 8 + lane() % 8;
      groups[i] = (is_zero() ? weight.zeros + g : scales + g * 4 + fragment) +
                  static_cast<long long>(unit * kParts + part()) * step;
    }
  }
  // A `half` unit has one block of 64 columns; what is copied for the other meets x of zero.
  __device__ __forceinline__ void copy_unit(u32 target, bool half) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const u32 to = target + f * kFragmentBytes + lane() * 16;
      cp_async_cg(to, words[f], 16);
      cp_async_cg(to + 512, words[f] + (half ? 0 : 128), 16);
      words[f] += GROUPS_K * 256;
    }
#pragma unroll
    for (int i = 0; i < kPointers; ++i) {
      const u32 to = target + fragment_of(i) * kFragmentBytes + 1024 + lane() % 16 * 4;
#pragma unroll
      for (int first = 0; first < kParts; first += 2) {
        const bool past = kParts > 1 && half && first + part() >= kParts / 2;
        const u32* source = groups[i] + (past ? first - kParts / 2 : first) * step;
        if (!is_idle()) cp_async_ca_4(to + (first + part()) * kGroupBytes, source);
      }
      groups[i] += kParts * GROUPS_K * step;
    }
  }
};

struct Group {
  u32 scales, zero_word;
};

__device__ __forceinline__ uint4 operand(u32 word, const Group& group, int fragment) {
  const uint4 a = Type::dequantize(word, fragment_zeros(group.zero_word, fragment));
  return SCALE_SUMS ? a : scale_fragment(a, group.scales);
}

// What half a unit begins with, as it stands in shared memory. A unit of one group has its scales with the
// first half.
struct Head {
  static constexpr int kHalfParts = (kParts + 1) / 2;
  uint4 words[kFragments];
  u32 scales[kHalfParts][kFragments], zeros[kHalfParts][kFragments];

  __device__ __forceinline__ void load(u32 stage, int half) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
      words[f] = ld_shared_v4(stage + f * kFragmentBytes + half * 512 + lane() * 16);
    if (kParts == 1 && half == 1) return;
#pragma unroll
    for (int part = 0; part < kHalfParts; ++part)
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        const int group = half * kHalfParts + part;
        const u32 at = stage + f * kFragmentBytes + 1024 + group * kGroupBytes + lane() / 4 * 4;
        scales[part][f] = ld_shared(at);
        zeros[part][f] = ZERO_POINT ? ld_shared(at + 32) : kSymmetricZero * 0x11111111u;
      }
  }
};

// Keeps what reads sums behind the wait for them.
__device__ __forceinline__ void settle(Sums& sums) {
#pragma unroll
  for (int octet = 0; octet < kOctets; ++octet)
#pragma unroll
    for (int i = 0; i < 4; ++i) keep(sums[octet][i]);
}
__device__ __forceinline__ void settle(Sums (&sums)[kFragments]) {
#pragma unroll
  for (int f = 0; f < kFragments; ++f) settle(sums[f]);
}

// Adds a group's sums, scaled, to those of all groups.
__device__ __forceinline__ void add_group(Sums& sums, const Sums& parts, u32 scales) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float scale = Type::to_float(static_cast<u16>(half ? scales >> 16 : scales));
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet)
#pragma unroll
      for (int i = half * 2; i < half * 2 + 2; ++i)
        sums[octet][i] = fmaf(parts[octet][i], scale, sums[octet][i]);
  }
}

// The products of 32 columns, which are under way when it returns; `fresh` sums start from zero.
__device__ __forceinline__ void start_products(Sums (&sums)[kFragments], uint4 (&a)[kFragments][2], u32 low,
                                               int step, bool fresh) {
#pragma unroll
  for (int f = 0; f < kFragments; ++f)
#pragma unroll
    for (int s = 0; s < 2; ++s) keep(a[f][s]);
  wgmma_fence();
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    const u64 b = descriptor(low, step / 2 * kXBlockBytes + (step % 2 * 2 + s) * 32);
#pragma unroll
    for (int f = 0; f < kFragments; ++f) start_product(sums[f], a[f][s], b, fresh && s == 0);
  }
  wgmma_commit_group();
}

struct Unit {
  u32 stage, next;   // of weights: its own, and that of the warp's next unit
  u32 low, full;     // of x: its descriptor and barrier
  u32 empty_before;  // the barrier of the warp's unit before, or 0
  u32 parity;
  bool last;
};

struct Consumer {
  int fragment;
  Sums sums[kFragments];
  Sums parts[kFragments];  // SCALE_SUMS: of a group
  Group group[kFragments];
  uint4 a[2][kFragments][2];
  Head head;

  __device__ __forceinline__ explicit Consumer(int fragment) : fragment(fragment), sums{}, parts{}, group{} {}

  // Lanes read scales and zeros that others copied.
  __device__ __forceinline__ void load_head(u32 stage) {
    cp_async_wait_group<STAGES - 1>();
    __syncwarp();
    head.load(stage, 0);
  }
  __device__ __forceinline__ static void release(u32 empty) {
    if (lane() == 0) mbarrier_arrive(empty);
  }
  // Waits for all products and adds the group's sums.
  __device__ __forceinline__ void end_group(const Group (&ended)[kFragments]) {
    wgmma_wait_group<0>();
    settle(SCALE_SUMS ? parts : sums);
#pragma unroll
    for (int f = 0; SCALE_SUMS && f < kFragments; ++f) add_group(sums[f], parts[f], ended[f].scales);
  }

  // A unit in four steps of 32 columns: the products of one are under way while the next is dequantised,
  // those of the last still are at the end, so that x is released in the next unit. `refill` may overwrite
  // the stage.
  template <typename Refill>
  __device__ __forceinline__ void multiply_unit(const Unit& unit, Refill refill) {
    Group ended[kFragments];
    uint4 words[kFragments];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const bool fresh = step % kPartSteps == 0;
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        const int part = step / kPartSteps % Head::kHalfParts;
        if (fresh) ended[f] = group[f], group[f] = {head.scales[part][f], head.zeros[part][f]};
        if (step % 2 == 0) words[f] = head.words[f];
      }
      if (step == 1) head.load(unit.stage, 1);
      if (step == 2) refill();
      wgmma_wait_group<1>();
      if (step == 1 && unit.empty_before) release(unit.empty_before);
#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        a[step % 2][f][0] = operand(step % 2 ? words[f].z : words[f].x, group[f], fragment);
        a[step % 2][f][1] = operand(step % 2 ? words[f].w : words[f].y, group[f], fragment);
      }
      if (step == 0) mbarrier_wait(unit.full, unit.parity);
      if (SCALE_SUMS && fresh) end_group(ended);
      start_products(SCALE_SUMS ? parts : sums, a[step % 2], unit.low, step, SCALE_SUMS && fresh);
      if (step == 3 && !unit.last) load_head(unit.next);
    }
  }
};

// x for all units, through the rings; the block's warps may go on once the first unit of each group along k
// is asked for. A box has as many rows as there are tokens, because the copy engine is slow to fill those
// past the last one. What stands in their place meets no sum that is stored. The kernel behind may start once
// none ahead still runs, so that no more than two share the device.
__device__ __forceinline__ void fetch_x(const Block& block, const TensorMap* x, int tokens) {
  int stage = 0, parity = 1;
  const auto ask = [&](int from, int to) {
#pragma unroll 1
    for (int unit = from; unit < to; ++unit) {
      if (unit >= kXStages) mbarrier_wait(block.empty(stage), parity);
      const int column = (block.begin + unit) * 128;
      mbarrier_arrive_expect_tx(block.full(stage), 2 * tokens * 128);
      cp_async_bulk_tensor_2d(block.x(stage), x, column, 0, block.full(stage));
      cp_async_bulk_tensor_2d(block.x(stage) + kXBlockBytes, x, column + 64, 0, block.full(stage));
      if (++stage == kXStages) stage = 0, parity ^= 1;
    }
  };
  if (lane() == 0) prefetch_tensor_map(x);
  griddepcontrol_wait();
  griddepcontrol_launch_dependents();
  if (lane() == 0) ask(0, min(GROUPS_K, block.count));
  __syncwarp();
  bar_arrive<kThreads>(kAsked);
  if (lane() == 0) ask(GROUPS_K, block.count);
}

// All units of the warp, of which it has one at least. STAGES are unrolled, so that what depends on the stage
// alone is constant.
__device__ __forceinline__ void multiply_units(Consumer& consumer, Writer& writer, const Block& block,
                                               u32 ring, int along_k, int units, bool odd) {
  const u32 low = descriptor_low(block.x(along_k)), barriers = block.full(along_k);
  const auto x_barrier = [&](int stage) { return barriers + stage * GROUPS_K * 16; };
  u32 parity = 0, empty_before = 0;
  int left = units;
  consumer.load_head(ring);
#pragma unroll 1
  while (true) {
#pragma unroll
    for (int s = 0; s < STAGES; ++s) {
      const Unit unit{ring + s * kStageBytes,
                      ring + (s + 1) % STAGES * kStageBytes,
                      low + s * GROUPS_K * kXStageBytes / 16,
                      x_barrier(s),
                      s == 0 ? empty_before : x_barrier(s - 1) + 8,
                      parity,
                      s + 1 >= left};
      consumer.multiply_unit(unit, [&] {
        __syncwarp();
        if (s + STAGES < left) writer.copy_unit(unit.stage, odd && s + STAGES == left - 1);
        cp_async_commit_group();
      });
      if (unit.last) {
        consumer.end_group(consumer.group);
        return;
      }
    }
    empty_before = x_barrier(STAGES - 1) + 8;
    parity ^= 1;
    left -= STAGES;
  }
}

__device__ __forceinline__ void multiply(const Block& block, const PackedWeight& weight,
                                         const Results& results) {
  const int warp = threadIdx.x / 32, along_n = warp / 4 % GROUPS_N, along_k = warp / 4 / GROUPS_N;
  const int units = (block.count - along_k + GROUPS_K - 1) / GROUPS_K, first = block.begin + along_k;
  const u32 ring = block.weights(warp);
  const bool odd = 2 * (first + (units - 1) * GROUPS_K) + 1 == weight.k64;  // the last unit is half a one
  Writer writer(weight, (blockIdx.y * GROUPS_N + along_n) * kFragments, warp % 4, first);
  const auto copy_units = [&](int from, int to) {
#pragma unroll 1
    for (int unit = from; unit < to; ++unit) {
      if (unit < units) writer.copy_unit(ring + unit * kStageBytes, odd && unit == units - 1);
      cp_async_commit_group();
    }
  };
  copy_units(0, kAhead);
  if constexpr (SPLIT > 1) barrier_cluster_arrive_relaxed();
  bar_sync<kThreads>(kAsked);
  copy_units(kAhead, STAGES);

  Consumer consumer(warp % 4);
  multiply_units(consumer, writer, block, ring, along_k, units, odd);
  meet_blocks();
  const Sender sender{block, results, warp, along_n, along_k};
  if constexpr (GROUPS_K > 1) sender.pass(consumer.sums);
#pragma unroll
  for (int f = 0; f < kFragments; ++f) sender.send(consumer.sums[f], f);
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
    mbarrier_arrive_expect_tx(block.sent(), (SPLIT - 1) * own_rows() / 16 * ((tokens + 7) / 8) * kOctetBytes);
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
  const Results results{out, bias, tokens, static_cast<int>(n)};
  if (threadIdx.x / 32 == kWarps) {
    if (lane() == 0) init_barriers(block, tokens);
    __syncwarp();
    if constexpr (SPLIT > 1) barrier_cluster_arrive_relaxed();
    fetch_x(block, &x, tokens);
    __syncwarp();
    meet_blocks();
  } else {
    multiply(block, weight, results);
  }
  if (SPLIT > 1 && threadIdx.x / 32 < kWarps) {
    bar_sync<kWarps * 32>(kMultiplied);  // the block's own shares
    mbarrier_wait(block.sent(), 0);
    add_sums(block, results, blockIdx.y * kRows + rank * kOwnRows);
  }
}
