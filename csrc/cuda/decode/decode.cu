// out[m, n] = x[m, k] @ dequant(w[n, k]).T + bias[n] for up to 4 tokens on sm_90, computed as out^T = w x^T.
//
// A cluster of SPLIT blocks has tiles of kRows rows, one after the other; each of its blocks has a slice of
// k, whose columns of x stay in its shared memory. A block's warps stand WARPS_N along n and WARPS_K along k.
// Each has a ring of STAGES units of weights in shared memory, which it fills for itself (a lane reads what
// it copied): `ahead` of them from before the kernel ahead on the stream has ended, the rest once x has been
// asked for. So warps meet only once per tile: then each sends its sums to the block of the cluster that owns
// the rows. A barrier there counts them, for which no block waits for copies of its own under way, as a
// release would. Sums are fp32 and added in a fixed order.
//
// Zeros are subtracted from the sums of a group: sum (q - z) x = sum q x - z sum x. Tensor cores form sum x
// too, with weights of one. Tokens are in the even columns of B, so that the sums of the odd ones are never
// scaled, sent or kept.
//
// Compile-time: FRAGMENTS WARPS_N WARPS_K STAGES SPLIT; CHUNKS of x that come by bulk copies (0: by loads of
// the warps that need it); UNIT (128, or 64 where k is an odd number of 64 columns); GROUP (32, 64, 128; 0 is
// one group of all k); ZERO_POINT; BF16. Every parameter is 8 bytes wide. autotune/families/decode.py mirrors
// the constants.
#include "common/layout.cuh"

namespace {

constexpr int kFragments = FRAGMENTS;
constexpr int kWarps = WARPS_N * WARPS_K;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = WARPS_N * kFragments * 16;
constexpr int kOwnRows = kRows / SPLIT;
constexpr int kSlots = WARPS_K * SPLIT;
constexpr int kSumStride = kOwnRows + 4;  // a warp's stores of its sums fall into different banks
constexpr int kBlocks = UNIT / 64;
constexpr int kGroups = GROUP == 32 || GROUP == 64 ? UNIT / GROUP : 1;  // of a unit
constexpr int kHalves = kBlocks * 2 / kGroups;                          // of blocks in a group
constexpr int kBlockGroups = kHalves == 1 ? 2 : 1;                      // that come with a block, if any do
constexpr int kPieceBytes = kFragments * 512;
constexpr int kScaleBytes = 128;
constexpr int kGroupBytes = kScaleBytes + (ZERO_POINT ? 32 : 0);
constexpr int kStageBytes = kBlocks * kPieceBytes + kGroups * kGroupBytes;
constexpr int kHeadBytes = 128;  // a barrier per chunk of x, two for sums of other blocks
constexpr int kBarriers = CHUNKS + (SPLIT > 1 ? 2 : 0);

static_assert(kOwnRows % 16 == 0, "a fragment has one owner");
static_assert(4 % kFragments == 0, "a warp's rows lie in one block");
static_assert(GROUP != 128 || UNIT == 128, "a group lies in one unit");
static_assert(kBarriers * 8 <= kHeadBytes, "barriers fit the head");

using Sums = float[kFragments][2];   // of the rows g and g + 8, for one token
using Parts = float[kFragments][4];  // for an octet of tokens, as an MMA has them

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }

// The warp's first row in a tile.
__device__ __forceinline__ int warp_row() { return threadIdx.x / 32 % WARPS_N * kFragments * 16; }

// A warp's way through its block's slice of k.
struct Way {
  int first, units, tiles;  // its first unit, its units in a tile, its tiles
};

// Fills the ring of a warp, by offsets that go from unit to unit: of 32 bits, which leaves registers, and
// enough for 32 GB of words. Lanes 0 to 7 copy the scales of the 64 rows, lanes 8 and 9 their zeros; those of
// the next group are copied by lanes 16 to 25.
struct Writer {
  const PackedWeight& weight;
  const Way& way;
  int row;  // its first row in all
  int unit, word, group;

  // What the lane copies from of 64 rows and one group: scales or zeros.
  __device__ __forceinline__ static int piece() { return kGroups == 1 ? lane() : lane() % 16; }
  __device__ __forceinline__ static int part() { return kGroups == 1 ? 0 : lane() / 16; }
  __device__ __forceinline__ static int group_words() { return piece() < 8 ? 32 : 8; }
  // To the first unit of the tile.
  __device__ __forceinline__ void seek() {
    const int nb = min(row / 64, weight.n64 - 1);  // rows past the last block repeat it
    word = static_cast<int>(weight.fragment(nb, way.first * kBlocks, row / 16 % 4, lane()) - weight.words);
    const int first = GROUP == 0 ? 0 : way.first * kGroups + part();
    group = (first * weight.n64 + nb) * group_words() + piece() % 8 * 4;
    unit = 0;
  }
  // The next unit to a stage: a warp has as many under way as stages, so it is the one just read.
  __device__ __forceinline__ void copy_unit(u32 stage) {
    if (row - warp_row() < weight.n64 * 64) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
#pragma unroll
        for (int f = 0; f < kFragments; ++f)
          cp_async_cg(stage + block * kPieceBytes + f * 512 + lane() * 16,
                      weight.words + word + (block * 128 + f * 32), 16);
      const u32* source = piece() < 8 ? reinterpret_cast<const u32*>(weight.scales) : weight.zeros;
      const int group_step = weight.n64 * group_words();
      const u32 group_target = stage + kBlocks * kPieceBytes + part() * kGroupBytes + piece() * 16;
#pragma unroll
      for (int first = 0; first < kGroups; first += 2)
        if (piece() < kGroupBytes / 16)
          cp_async_cg(group_target + first * kGroupBytes, source + group + first * group_step, 16);
      word += WARPS_K * kBlocks * 128;
      if constexpr (GROUP != 0) group += WARPS_K * kGroups * group_step;
      if (++unit == way.units) {
        row += gridDim.y * kRows;
        seek();
      }
    }
    cp_async_commit_group();
  }
};

// The scales of rows g and g + 8 of each fragment, and the zero word with the first fragment's in the low
// byte.
struct Group {
  u32 scales[kFragments];
  u32 zeros;
};

__device__ __forceinline__ Group load_group(u32 address, int fragment) {
  Group group;
  const int g = lane() / 4;
  if constexpr (kFragments == 4) {
    const uint4 v = ld_shared_v4(address + g * 16);
    group.scales[0] = v.x, group.scales[1] = v.y, group.scales[2] = v.z, group.scales[3] = v.w;
  } else {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) group.scales[f] = ld_shared(address + g * 16 + (fragment + f) * 4);
  }
  group.zeros = kSymmetricZero * 0x11111111u;
  if constexpr (ZERO_POINT != 0) group.zeros = ld_shared(address + kScaleBytes + g * 4) >> (8 * fragment);
  return group;
}

// Adds a group's sums, scaled, to those of all groups. `totals` are the sums of its columns of x.
__device__ __forceinline__ void add_group(Sums& sums, const Parts& parts, const float (&totals)[4],
                                          const Group& group) {
#pragma unroll
  for (int f = 0; f < kFragments; ++f)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = Type::to_float(static_cast<u16>(half ? group.scales[f] >> 16 : group.scales[f]));
      const float zero = Raw::zero(group.zeros, f, half);
      const float part = fmaf(-zero, totals[0], parts[f][half * 2]);
      sums[f][half] = fmaf(part, scale, sums[f][half]);
    }
}

// Half a block of 64 k: two MMAs of 16 columns for every fragment.
__device__ __forceinline__ void multiply_half(Parts& parts, float (&totals)[4],
                                              const uint4 (&words)[kFragments], uint4 tokens, int half) {
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    const u32 b0 = s ? tokens.z : tokens.x, b1 = s ? tokens.w : tokens.y;
    Type::mma(totals, {Raw::kOne, Raw::kOne, Raw::kOne, Raw::kOne}, b0, b1);
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
      Type::mma(parts[f], Raw::fragment(half ? (s ? words[f].w : words[f].z) : (s ? words[f].y : words[f].x)),
                b0, b1);
  }
}

// One unit of k from the ring; its stage is filled anew as soon as the last words are in registers. `x` is
// what the lane names to ldmatrix.
__device__ __forceinline__ void multiply_unit(Sums& sums, u32 stage, u32 x, int fragment, Writer& writer) {
  Group groups[kBlockGroups];
  uint4 words[kFragments], tokens[2];
  Parts parts;
  float totals[4];
#pragma unroll
  for (int half = 0; half < kBlocks * 2; ++half) {
    const int block = half / 2, group = half / kHalves;
    if (half % 2 == 0) {
#pragma unroll
      for (int f = 0; f < kFragments; ++f)
        words[f] = ld_shared_v4(stage + block * kPieceBytes + f * 512 + lane() * 16);
#pragma unroll
      for (int i = 0; i < kBlockGroups; ++i)
        if (half % kHalves == 0)
          groups[i] = load_group(stage + kBlocks * kPieceBytes + (group + i) * kGroupBytes, fragment);
#pragma unroll
      for (int i = 0; i < 2; ++i) tokens[i] = ldmatrix_x4(x + block * 128 + i * 64);
      if (block == kBlocks - 1) {
        __syncwarp();
        writer.copy_unit(stage);
      }
    }
    if (half % kHalves == 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        totals[i] = 0;
#pragma unroll
        for (int f = 0; f < kFragments; ++f) parts[f][i] = 0;
      }
    }
    multiply_half(parts, totals, words, tokens[half % 2], half % 2);
    if (half % kHalves == kHalves - 1) add_group(sums, parts, totals, groups[group % kBlockGroups]);
  }
}

// A warp's sums to the blocks that own their rows, [kSlots][tokens][kSumStride]; `sent` is the barrier that
// counts them there.
__device__ __forceinline__ void send_sums(u32 slots, u32 sent, const Sums& sums, int tokens) {
  const int slot = (SPLIT > 1 ? blockIdx.x : 0) * WARPS_K + threadIdx.x / 32 / WARPS_N;
#pragma unroll
  for (int f = 0; f < kFragments; ++f) {
    const int row = warp_row() + f * 16;
    const u32 own = slots + (slot * tokens * kSumStride + row % kOwnRows + lane() / 4) * 4;
    const u32 target = SPLIT > 1 ? mapa(own, row / kOwnRows) : own;
    const u32 counted = SPLIT > 1 ? mapa(sent, row / kOwnRows) : 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = lane() % 4;
      const u32 at = target + (token * kSumStride + half * 8) * 4;
      const float sum = sums[f][half] * (half ? Raw::kUnit8 : Raw::kUnit);
      if (token >= tokens) continue;
      if constexpr (SPLIT > 1)
        st_async(at, sum, counted);
      else
        st_shared(at, sum);
    }
  }
}

__device__ __forceinline__ void store_out(u16* out, const u16* bias, float4 v) {
  if (bias != nullptr)
    v = v + float4{Type::to_float(bias[0]), Type::to_float(bias[1]), Type::to_float(bias[2]),
                   Type::to_float(bias[3])};
  *reinterpret_cast<uint2*>(out) = {Type::from_floats(v.x, v.y), Type::from_floats(v.z, v.w)};
}

// The sums of the rows that this block owns.
__device__ __forceinline__ void add_slots(u32 slots, u16* out, const u16* bias, int tokens, int row0, int n) {
  constexpr int kQuads = kOwnRows / 4;
  for (int i = threadIdx.x; i < tokens * kQuads; i += kThreads) {
    const int token = i / kQuads, column = i % kQuads * 4, row = row0 + column;
    if (row >= n) continue;
    const u32 at = slots + (token * kSumStride + column) * 4;
    float4 sum = ld_shared_v4_f32(at);
#pragma unroll
    for (int slot = 1; slot < kSlots; ++slot)
      sum = sum + ld_shared_v4_f32(at + slot * tokens * kSumStride * 4);
    store_out(out + static_cast<u64>(token) * n + row, bias ? bias + row : nullptr, sum);
  }
}

// The block's columns of x in shared memory, [count][stride]: in CHUNKS of `units` each with a barrier each,
// or loaded by each warp for itself and the warps beside it, a unit and token at a time, several in flight.
struct Tokens {
  const u16* x;
  u32 shared, barriers;
  int count, stride, column0, k, units;

  static constexpr int kPieces = kBlocks * 8, kAtOnce = 32 / kPieces * WARPS_N, kHeld = 4;
  __device__ __forceinline__ static int number(int from, int i) {
    return from + i * kAtOnce + threadIdx.x / 32 % WARPS_N * (32 / kPieces) + lane() / kPieces;
  }
  __device__ __forceinline__ int column(int first, int number) const {
    return (first + number / count * WARPS_K) * kBlocks * 64 + lane() % kPieces * 8;
  }
  __device__ __forceinline__ void load(uint4 (&held)[kHeld], int first, int from, int all) const {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int n = number(from, i), at = column0 + column(first, n);
      held[i] = {};
      if (n < all && at < k)
        held[i] = *reinterpret_cast<const uint4*>(x + static_cast<u64>(n % count) * k + at);
    }
  }
  __device__ __forceinline__ void store(const uint4 (&held)[kHeld], int first, int from, int all) const {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int n = number(from, i);
      if (n < all) st_shared_v4_u32(shared + (n % count * stride + column(first, n)) * 2, held[i]);
    }
  }

  // Columns past k become zeros: their weights are zero, and zero times what lies there may not be.
  __device__ __forceinline__ void clear_past(unsigned char* base) const {
    const int inside = k - column0, past = stride - inside;
    if (past <= 0) return;
    u16* columns = reinterpret_cast<u16*>(base + (shared - shared_address(base)));
    for (int i = threadIdx.x; i < count * past; i += kThreads)
      columns[i / past * stride + inside + i % past] = 0;
  }
  __device__ __forceinline__ void copy() const {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
      const int from = chunk * units * kBlocks * 64;
      const int columns = min(min(stride - 8, k - column0) - from, units * kBlocks * 64);
      if (columns <= 0) break;
      if (threadIdx.x == 0) mbarrier_arrive_expect_tx(barriers + chunk * 8, count * columns * 2);
      if (lane() == 0)
        for (int token = threadIdx.x / 32; token < count; token += kWarps)
          cp_async_bulk(shared + (token * stride + from) * 2,
                        x + static_cast<u64>(token) * k + column0 + from, columns * 2, barriers + chunk * 8);
    }
  }
};

}  // namespace

extern "C" __global__ void
#if SPLIT > 1
__cluster_dims__(SPLIT, 1, 1)
#endif
    __launch_bounds__(kThreads, 16 / kWarps)  // 128 registers; with fewer, warps spill
    int4_decode(const u16* x, const uint4* qweight, const u16* scales, const u32* zeros, const u16* bias,
                u16* out, long long m, long long n, long long k, long long ahead) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int rank = SPLIT > 1 ? blockIdx.x : 0, warp = threadIdx.x / 32;
  const int n64 = static_cast<int>((n + 63) / 64), k64 = static_cast<int>((k + 63) / 64);
  const int tokens = static_cast<int>(m), rows = n64 * 64, units = k64 / kBlocks;
  const int begin = units * rank / SPLIT, end = units * (rank + 1) / SPLIT, first = begin + warp / WARPS_N;
  const int row0 = blockIdx.y * kRows, step = gridDim.y * kRows;
  const PackedWeight weight{qweight, scales, zeros, n64, k64};
  const Way way{first, (end - first + WARPS_K - 1) / WARPS_K, (rows - row0 + step - 1) / step};

  const u32 head = shared_address(shared);
  const u32 ring = head + kHeadBytes + warp * STAGES * kStageBytes;
  Writer writer{weight, way, row0 + warp_row()};
  writer.seek();
#pragma unroll 1
  for (int stage = 0; stage < ahead; ++stage) writer.copy_unit(ring + stage * kStageBytes);

  const u32 slots = head + kHeadBytes + kWarps * STAGES * kStageBytes;
  const u32 slot_bytes = kSlots * tokens * kSumStride * 4;
  const int most_units = (units + SPLIT - 1) / SPLIT;
  const Tokens columns{x,
                       slots + 2 * slot_bytes,
                       head,
                       tokens,
                       most_units * kBlocks * 64 + 8,
                       begin * kBlocks * 64,
                       static_cast<int>(k),
                       CHUNKS > 0 ? (most_units + CHUNKS - 1) / (CHUNKS + !CHUNKS) : 0};
  if constexpr (CHUNKS > 0) columns.clear_past(shared);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < kBarriers; ++i) mbarrier_init(head + i * 8, 1);
    fence_mbarrier_init();
  }
  if constexpr (SPLIT > 1) barrier_cluster_arrive_relaxed();  // the fence above is all that it must release
  if constexpr (kBarriers > 0) __syncthreads();
  griddepcontrol_wait();
  uint4 held[Tokens::kHeld];
  const int all = way.units * tokens;
  if constexpr (CHUNKS > 0)
    columns.copy();
  else
    columns.load(held, first - begin, 0, all);
  griddepcontrol_launch_dependents();  // later than at the top: whoever waits here may still be read by it
#pragma unroll 1
  for (int stage = ahead; stage < STAGES; ++stage) writer.copy_unit(ring + stage * kStageBytes);
  if constexpr (CHUNKS == 0) {
    columns.store(held, first - begin, 0, all);
#pragma unroll 1
    for (int from = Tokens::kHeld * Tokens::kAtOnce; from < all; from += Tokens::kHeld * Tokens::kAtOnce) {
      columns.load(held, first - begin, from, all);
      columns.store(held, first - begin, from, all);
    }
    if constexpr (WARPS_N > 1) __syncthreads();  // else the first unit's __syncwarp will do
  }

  // The lane's row of x; a missing token repeats the last one.
  const u32 x_row = columns.shared + (min(lane() % 8 / 2, tokens - 1) * columns.stride + lane() / 8 * 8) * 2;
  if constexpr (SPLIT > 1) barrier_cluster_wait();

  u32 stage = ring;
  int chunk = 0;
  for (int tile = 0; tile < way.tiles; ++tile) {
    const int row = row0 + tile * step, fragment = (row + warp_row()) / 16 % 4;
    Sums sums = {};
#pragma unroll 1
    for (int unit = 0; unit < way.units; ++unit) {
      const int at = first - begin + unit * WARPS_K;
      for (; chunk < CHUNKS && chunk * columns.units <= at; ++chunk) mbarrier_wait(head + chunk * 8, 0);
      cp_async_wait_group<STAGES - 1>();
      __syncwarp();
      multiply_unit(sums, stage, x_row + at * kBlocks * 128, fragment, writer);
      stage += kStageBytes;
      if (stage == ring + STAGES * kStageBytes) stage = ring;
    }
    // Two buffers take turns, each with a barrier: a block sends to one again after it has got the sums of
    // the tile between, which another block sends only once all its warps have read that buffer.
    const u32 buffer = slots + tile % 2 * slot_bytes, sent = head + (CHUNKS + tile % 2) * 8;
    if constexpr (SPLIT > 1) {
      if (tile > 0) __syncthreads();
      if (threadIdx.x == 0) mbarrier_arrive_expect_tx(sent, kSlots * kOwnRows * tokens * 4);
      send_sums(buffer, sent, sums, tokens);
      mbarrier_wait(sent, tile / 2 % 2);
    } else {
      send_sums(buffer, 0, sums, tokens);
      __syncthreads();
    }
    add_slots(buffer, out, bias, tokens, row + rank * kOwnRows, static_cast<int>(n));
  }
}
