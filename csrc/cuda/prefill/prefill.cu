// out[m, n] = x[m, k] @ dequant(w[n, k]).T + bias[n] for many tokens on sm_90a, computed as out^T = w x^T by
// wgmma: weights are the operand A, dequantised into registers, x is B, in shared memory.
//
// A block multiplies a tile of WARPGROUPS * FRAGMENTS * 64 rows by TILE_M tokens. One thread copies: a unit
// of 64 columns of x and of the packed words at a time, into a ring of STAGES, and it is at the next tile
// while results are stored. WARPGROUPS warpgroups multiply, each FRAGMENTS times 64 rows by all tokens of the
// tile. While the tensor cores are at one step of 16 or 32 columns, the operands of the next are dequantised.
// Sums are fp32 and added in a fixed order.
//
// A worker is a block, or a cluster of blocks. Tiles are shared out (prefill/work.cuh) in one of these ways:
// - SPLIT_K = 1: at most as many workers as run at once, which take one tile after the other. With CLUSTER
//   = 2 a worker is two blocks with the same tokens and neighbouring rows; each copies half of x to both.
//   With STREAM_K the tiles of the last waves are shared by all workers: each multiplies some columns of
//   them, and sums meet in the workspace (prefill/results.cuh).
// - SPLIT_K > 1: a worker per tile, which is a cluster of SPLIT_K blocks with a slice of the columns each;
//   sums meet in shared memory (prefill/split.cuh).
//
// Compile-time: TILE_M (a multiple of 16), WARPGROUPS (2, 3) and FRAGMENTS (1, 2), whose sums must fit the
// registers (_SHAPES in autotune/families/prefill.py); CLUSTER (1, 2); SPLIT_K (1 to 4); STREAM_K (0, 1);
// STAGES; GROUP (32, 64, 128; 0 is one group of all k); ZERO_POINT; BF16. Every parameter after the tensor
// map of x is 8 bytes wide.
#include "prefill/split.cuh"

namespace {

constexpr int kGroupSteps = GROUP == 32 ? 2 : 1;  // groups of a unit of 64 columns
// Products of 16 columns in a step. One product of many tokens takes long enough to make the next operands
// meanwhile; of fewer tokens it takes two.
constexpr int kProducts = TILE_M > 192 ? 1 : 2;
constexpr int kSteps = 4 / kProducts;                                     // of a unit
constexpr int kGroupUnits = GROUP == 0 ? 1 << 30 : GROUP == 128 ? 2 : 1;  // units of a group, at least 1

// The thread that copies, for all pieces of its block. The words of the first stages do not wait for the
// kernel ahead on the stream, which may write x but never weights.
struct Copier {
  const Block& block;
  const TensorMap* x;
  const PackedWeight& weight;
  int tokens;

  __device__ __forceinline__ void copy_words(const Piece& piece, int unit, int stage) const {
#pragma unroll
    for (int r = 0; r < kRowBlocks; ++r) {
      const int nb = min(piece.row_block + r, weight.n64 - 1);  // rows past the last repeat it
      cp_async_bulk(block.words(stage) + r * 2048, weight.fragment(nb, unit, 0, 0), 2048, block.full(stage));
    }
  }
  __device__ __forceinline__ void copy_x(const Piece& piece, int unit, int stage) const {
    constexpr int kPart = TILE_M / CLUSTER;
    if constexpr (CLUSTER > 1) {
      const int first = static_cast<int>(blockIdx.x) % CLUSTER * kPart;
      cp_async_bulk_tensor_2d_multicast(block.x(stage) + first * 128, x, unit * 64, piece.token + first,
                                        block.full(stage), (1u << CLUSTER) - 1);
    } else {
      cp_async_bulk_tensor_2d(block.x(stage), x, unit * 64, piece.token, block.full(stage));
    }
  }
  __device__ __forceinline__ void expect(int stage) const {
    // The launcher makes a box no taller than x. Rows past the last token come as zeros, and count.
    const int bytes = min(TILE_M / CLUSTER, tokens) * CLUSTER * 128 + kWordBytes;
    mbarrier_arrive_expect_tx(block.full(stage), bytes);
  }
  __device__ __forceinline__ void copy_all(const Work& work) const {
    prefetch_tensor_map(x);
    Pieces pieces(work);
    Piece piece{};
    bool more = pieces.next(&piece);
    const int ahead = min(STAGES, piece.end - piece.begin);
#pragma unroll 1
    for (int i = 0; i < ahead; ++i) expect(i), copy_words(piece, piece.begin + i, i);
    griddepcontrol_wait();
    griddepcontrol_launch_dependents();
    Ring ring;
    int copied = 0;
#pragma unroll 1
    for (; more; more = pieces.next(&piece)) {
#pragma unroll 1
      for (int unit = piece.begin; unit < piece.end; ++unit, ++copied) {
        if (copied >= STAGES) mbarrier_wait(block.empty(ring.stage), ring.parity ^ 1);
        if (copied >= ahead) expect(ring.stage), copy_words(piece, unit, ring.stage);
        copy_x(piece, unit, ring.stage);
        ring.advance();
      }
    }
    if constexpr (CLUSTER > 1) wait_for_others(ring, min(STAGES, copied));
  }
  // The other block of the cluster arrives at this one's barriers, so these must last until it has read all
  // that was copied to it.
  __device__ __forceinline__ void wait_for_others(Ring ring, int filled) const {
    if (filled < STAGES) ring = {};
#pragma unroll 1
    for (int i = 0; i < filled; ++i) {
      mbarrier_wait(block.empty(ring.stage), filled < STAGES ? 0 : ring.parity ^ 1);
      ring.advance();
    }
  }
};

// Keeps what reads sums behind the wait for them.
__device__ __forceinline__ void settle(Sums (&sums)[kFragments]) {
#pragma unroll
  for (int f = 0; f < kFragments; ++f)
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet)
#pragma unroll
      for (int i = 0; i < 4; ++i) keep(sums[f][octet][i]);
}

// A value that stays in a register; without this it would be computed anew in each unit.
__device__ __forceinline__ u32 kept(u32 value) {
  u32 v;
  asm volatile("mov.u32 %0, %1;" : "=r"(v) : "r"(value));
  return v;
}

// Scales and zeros of the lane's rows g and g + 8, as operands take them.
struct Group {
  Zeros zeros;
  u32 scale, scale8;

  __device__ __forceinline__ uint4 operand(u32 word) const {
    const uint4 q = Type::dequantize(word, zeros);
    return {Type::multiply(q.x, scale), Type::multiply(q.y, scale8), Type::multiply(q.z, scale),
            Type::multiply(q.w, scale8)};
  }
};

// The same as they are stored, which is how those of the next group wait.
struct StoredGroup {
  u32 scales, zero_word;

  __device__ __forceinline__ Group ready(int warp) const {
    return {fragment_zeros(zero_word, warp), prmt(scales, 0x1010), prmt(scales, 0x3232)};
  }
};

// A warp that multiplies.
struct Multiplier {
  const PackedWeight& weight;
  int groups;           // of a row
  int warpgroup, warp;  // warp: of the warpgroup
  u32 words, x, full;   // of the first stage: the lane's words, the descriptor of x, the full barrier
  u32 empty;            // the same stage's empty barrier in the block that this lane tells, one lane each
  Ring ring;
  Sums sums[kFragments];
  int rows[kFragments];  // blocks of 64 rows
  Group group[kFragments][kGroupSteps];
  StoredGroup next[kFragments][kGroupSteps];
  uint4 a[2][kFragments][kProducts];  // operands of two steps: one is multiplied, one is made

  __device__ __forceinline__ Multiplier(const Block& block, const PackedWeight& weight, int groups)
      : weight(weight), groups(groups), warpgroup(threadIdx.x / 128), warp(threadIdx.x / 32 % 4) {
    words = kept(block.words(0) + warpgroup * kFragments * 2048 + warp * 512 + lane() * 16);
    x = descriptor_low(block.x(0));
    full = kept(block.full(0));
    empty = kept(CLUSTER > 1 ? mapa(block.empty(0), lane() % CLUSTER) : block.empty(0));
  }

  __device__ __forceinline__ int row_block(const Piece& piece) const {
    return piece.row_block + warpgroup * kFragments;
  }
  __device__ __forceinline__ void begin(const Piece& piece) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) rows[f] = min(row_block(piece) + f, weight.n64 - 1);
    load_groups(piece.begin);
  }
  __device__ __forceinline__ void load_groups(int unit) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int i = 0; i < kGroupSteps; ++i) {
        // k may end in the middle of a unit.
        const int at = GROUP == 0 ? 0 : GROUP == 32 ? min(2 * unit + i, groups - 1) : unit / kGroupUnits;
        next[f][i] = {weight.scale_pair(at, rows[f], warp, lane() / 4),
                      weight.zero_word(at, rows[f], lane() / 4)};
      }
  }
  // Where a group begins, takes what was loaded for it, and loads what the next one needs.
  __device__ __forceinline__ void change_groups(const Piece& piece, int done) {
    if (GROUP == 0 ? done != 0 : done % kGroupUnits != 0) return;
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
#pragma unroll
      for (int i = 0; i < kGroupSteps; ++i) group[f][i] = next[f][i].ready(warp);
    const int after = piece.begin + done + kGroupUnits;
    if (GROUP != 0 && after < piece.end) load_groups(after);
  }
  // Tells the threads that copy that the warp has read the stage of the unit before.
  __device__ __forceinline__ void release_stage_before() const {
    __syncwarp();  // all lanes have read their words
    if (lane() >= CLUSTER) return;
    const u32 barrier = empty + (ring.stage == 0 ? STAGES - 1 : ring.stage - 1) * 16;
    if (CLUSTER > 1)
      mbarrier_arrive_cluster(barrier);
    else
      mbarrier_arrive(barrier);
  }

  // The `done`-th unit of the piece. The products of one step are under way while the operands of the next
  // are made. Those of the last step still are when this returns, so the stage is released in the next unit.
  __device__ __forceinline__ void multiply_unit(int done) {
    mbarrier_wait(full + ring.stage * 16, ring.parity);
    uint4 w[kFragments];
#pragma unroll
    for (int f = 0; f < kFragments; ++f) w[f] = ld_shared_v4(words + ring.stage * kStageBytes + f * 2048);
    const u32 low = x + ring.stage * kStageBytes / 16;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint4(&operands)[kFragments][kProducts] = a[step % 2];
      wgmma_wait_group<1>();
      if (step == 1 && done > 0) release_stage_before();
#pragma unroll
      for (int f = 0; f < kFragments; ++f)
#pragma unroll
        for (int s = 0; s < kProducts; ++s) {
          const int of = step * kProducts + s;
          const u32 word = of == 0 ? w[f].x : of == 1 ? w[f].y : of == 2 ? w[f].z : w[f].w;
          operands[f][s] = group[f][kGroupSteps == 2 ? of / 2 : 0].operand(word);
          keep(operands[f][s]);
        }
      wgmma_fence();
#pragma unroll
      for (int s = 0; s < kProducts; ++s)
#pragma unroll
        for (int f = 0; f < kFragments; ++f)
          start_product(sums[f], operands[f][s], descriptor(low, (step * kProducts + s) * 32),
                        done + step + s == 0);
      wgmma_commit_group();
    }
    ring.advance();
  }
  __device__ __forceinline__ void multiply(const Piece& piece) {
    const int units = piece.end - piece.begin;
#pragma unroll 2
    for (int done = 0; done < units; ++done) {
      change_groups(piece, done);
      multiply_unit(done);
    }
    wgmma_wait_group<0>();
    settle(sums);
    release_stage_before();
  }
};

// All pieces of a warp that multiplies. With SPLIT_K the blocks of the cluster add up their sums. Else those
// of a piece without the first columns of its tile go to the worker that has these, which stores the results.
__device__ __forceinline__ void multiply_all(const Work& work, const Block& block, const PackedWeight& weight,
                                             const Partials& partials, Results results, int groups) {
  Multiplier multiplier(block, weight, groups);
  Pieces pieces(work);
  Piece piece, next;
  bool more = pieces.next(&piece);
  if (more) multiplier.begin(piece);
#pragma unroll 1
  while (more) {
    multiplier.multiply(piece);
    more = pieces.next(&next);
    if (more) multiplier.begin(next);
    const int row0 = piece.row_block * 64 + multiplier.warpgroup * kFragments * 64;
    if (SPLIT_K > 1) {
      const Split split{block};
      split.meet();
      split.send(multiplier.sums);
      split.add(multiplier.sums);
      results.store(block, multiplier.sums, row0, piece.token, split.begin(), split.end());
    } else if (piece.begin > 0) {
      partials.leave(work.worker, multiplier.sums);
    } else {
      if (piece.end < work.units) partials.add_all(work, piece, multiplier.sums);
      results.store(block, multiplier.sums, row0, piece.token);
    }
    piece = next;
  }
}

__device__ __forceinline__ void init_barriers(const Block& block) {
#pragma unroll
  for (int stage = 0; stage < STAGES; ++stage) {
    mbarrier_init(block.full(stage), 1);
    mbarrier_init(block.empty(stage), kWarps * CLUSTER);
  }
  if constexpr (SPLIT_K > 1) Split{block}.init();
  fence_mbarrier_init();
  if constexpr (SPLIT_K > 1) Split{block}.expect();
}

// All barriers are initialised, in all blocks of the cluster.
__device__ __forceinline__ void meet() {
  if constexpr (kBlocks > 1) {
    barrier_cluster_arrive_relaxed();
    barrier_cluster_wait();
  } else {
    __syncthreads();
  }
}

}  // namespace

extern "C" __global__ void
#if CLUSTER * SPLIT_K > 1
__cluster_dims__(CLUSTER* SPLIT_K, 1, 1)
#endif
    __launch_bounds__(kThreads, 1)
        int4_prefill(const __grid_constant__ TensorMap x, const uint4* qweight, const u16* scales,
                     const u32* zeros, const u16* bias, u16* out, u32* counters, float4* partials,
                     long long m, long long n, long long k, long long n1, long long n2) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const PackedWeight weight{qweight, scales, zeros, static_cast<int>((n + 63) / 64),
                            static_cast<int>((k + 63) / 64)};
  const Block block{(shared_address(shared) + 1023) / 1024 * 1024};
  const Work work(static_cast<int>(m), weight);
  if (threadIdx.x == kWarps * 32) init_barriers(block);
  meet();
  if (threadIdx.x >= kWarps * 32) {
    setmaxnreg_dec<WARPGROUPS == 2 ? 24 : 32>();
    if (threadIdx.x == kWarps * 32) Copier{block, &x, weight, static_cast<int>(m)}.copy_all(work);
  } else {
    setmaxnreg_inc<WARPGROUPS == 2 ? 240 : 160>();
    const int groups = GROUP == 0 ? 1 : static_cast<int>(k / GROUP);
    // Line breaks count in a kernel's hash: with others, records would be of another one.
    // clang-format off
    multiply_all(work, block, weight, {counters, partials},
                 {out, bias, static_cast<int>(m), static_cast<int>(n), static_cast<int>(n1),
                  static_cast<int>(n2)},
                 groups);
    // clang-format on
  }
}
