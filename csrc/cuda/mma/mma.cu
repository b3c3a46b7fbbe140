// out[m, n] = x[m, k] @ dequant(w[n, k]).T + bias[n] by mma.sync, computed as out^T = w x^T: weights are the
// A operand and go from global memory straight to registers; tokens are the B operand, through shared memory.
//
// A block owns TILE_M tokens x TILE_N rows and one of gridDim.z slices of k. Its warps stand kWarpsN along n
// and WARPS_K along k. A warp's step is one unit of k (kBlocks blocks of 64) for its kFragments x 16 rows;
// LOADS steps are on their way while one is computed. Partial sums are fp32 and added in a fixed order: over
// the warps of a block in shared memory, over the slices by the last block of a tile to arrive.
//
// Compile-time: TILE_M TILE_N WARPS WARPS_K LOADS; GROUP (32, 64, 128; 0 is one group of all k); ZERO_POINT;
// BF16. Every parameter is 8 bytes wide. autotune/families/mma.py mirrors the constants below.
#include "common/layout.cuh"

namespace {

constexpr int kWarpsN = WARPS / WARPS_K;
constexpr int kFragments = TILE_N / kWarpsN / 16;
constexpr int kOctets = TILE_M / 8;
constexpr int kThreads = WARPS * 32;
constexpr int kBlocks = GROUP == 128 ? 2 : 1;
constexpr int kGroups = GROUP == 32 ? 2 : 1;
constexpr int kStageColumns = WARPS_K * kBlocks * 64;
constexpr int kStageStride = kStageColumns + 8;  // 16 bytes more: ldmatrix rows fall into different banks
constexpr int kRing = 3;
constexpr int kSumStride = TILE_N + 4;  // a warp's stores of its sums fall into different banks
constexpr int kCounterBytes = 262144;   // the head of every workspace, zero between launches

// Scales multiply fp32 sums once per group while registers last, else the 16-bit weights.
constexpr bool kScaleSums = kFragments * kOctets <= 8;

static_assert(kWarpsN * WARPS_K == WARPS && kFragments * kWarpsN * 16 == TILE_N, "warps must tile n");
static_assert(kFragments == 1 || kFragments == 2 || kFragments == 4, "a warp's rows lie in one block");

using Sums = float[kFragments][kOctets][4];

// What a warp reads of the weights for one unit of k.
struct Step {
  uint4 words[kBlocks][kFragments];
  u32 scales[kGroups][kFragments];
  u32 zeros[kGroups];
};

// The rows of a warp, and the units of k of its block.
struct Rows {
  int block, fragment;
  bool inside;
};
struct Slice {
  int begin, end;
  __device__ __forceinline__ int steps() const { return (end - begin + WARPS_K - 1) / WARPS_K; }
};
struct Tokens {
  const u16* x;
  int count, k;
};

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }

__device__ __forceinline__ void load_step(Step& step, const PackedWeight& weight, const Rows& rows,
                                          int unit) {
#pragma unroll
  for (int block = 0; block < kBlocks; ++block)
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
      step.words[block][f] = ld_global_nc_no_allocate(
          weight.fragment(rows.block, unit * kBlocks + block, rows.fragment + f, lane()));
#pragma unroll
  for (int part = 0; part < kGroups; ++part) {
    const int group = GROUP == 0 ? 0 : unit * kGroups + part;
    step.zeros[part] = weight.zero_word(group, rows.block, lane() / 4);
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
      step.scales[part][f] = weight.scale_pair(group, rows.block, rows.fragment + f, lane() / 4);
  }
}

// Starts the copy of the columns of x that the block's warps use in one step; columns past k become zeros.
__device__ __forceinline__ void load_tokens(u32 stage, const Tokens& tokens, int first_unit) {
  constexpr int kChunks = kStageColumns / 8;
  for (int i = threadIdx.x; i < tokens.count * kChunks; i += kThreads) {
    const int token = i / kChunks, chunk = i % kChunks;
    const int column = first_unit * kBlocks * 64 + chunk * 8;
    const bool inside = column < tokens.k;
    const u16* source = tokens.x + static_cast<u64>(token) * tokens.k + (inside ? column : 0);
    cp_async_cg(stage + (token * kStageStride + chunk * 8) * 2, source, inside ? 16 : 0);
  }
}

__device__ __forceinline__ void add_scaled(Sums& sums, const Sums& parts, const u32 (&scales)[kFragments]) {
#pragma unroll
  for (int f = 0; f < kFragments; ++f) {
    const float g = Type::to_float(static_cast<u16>(scales[f]));
    const float g8 = Type::to_float(static_cast<u16>(scales[f] >> 16));
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[f][octet][i] = fmaf(parts[f][octet][i], i < 2 ? g : g8, sums[f][octet][i]);
  }
}

// Half a block of 64 k: two MMAs of 16 columns for every fragment and octet of tokens.
__device__ __forceinline__ void multiply_half(Sums& sums, const Step& step, u32 x,
                                              const int (&token_offset)[kOctets], int fragment, int part,
                                              int half) {
  uint4 tokens[kOctets];
#pragma unroll
  for (int octet = 0; octet < kOctets; ++octet)
    tokens[octet] = ldmatrix_x4(x + token_offset[octet] + half * 64);
#pragma unroll
  for (int f = 0; f < kFragments; ++f) {
    const Zeros zeros = fragment_zeros(step.zeros[part], fragment + f);
    const uint4 words = step.words[half / 2][f];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      uint4 a = Type::dequantize(half % 2 ? (s ? words.w : words.z) : (s ? words.y : words.x), zeros);
      if constexpr (!kScaleSums) a = scale_fragment(a, step.scales[part][f]);
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet)
        Type::mma(sums[f][octet], a, s ? tokens[octet].z : tokens[octet].x,
                  s ? tokens[octet].w : tokens[octet].y);
    }
  }
}

// One unit of k; `x` is the shared address of its step's columns of token 0.
__device__ __forceinline__ void multiply_step(Sums& sums, const Step& step, u32 x,
                                              const int (&token_offset)[kOctets], int fragment) {
  constexpr int kHalves = kBlocks * 2 / kGroups;
#pragma unroll
  for (int part = 0; part < kGroups; ++part) {
    Sums parts = {};
#pragma unroll
    for (int half = part * kHalves; half < (part + 1) * kHalves; ++half)
      multiply_half(kScaleSums ? parts : sums, step, x, token_offset, fragment, part, half);
    if constexpr (kScaleSums) add_scaled(sums, parts, step.scales[part]);
  }
}

// The block's slice of k: weights stream through registers, tokens through shared memory, which holds the
// whole slice of x (`resident`) or a ring of kRing steps.
__device__ __forceinline__ void multiply_slice(Sums& sums, const PackedWeight& weight, const Tokens& tokens,
                                               const Rows& rows, const Slice& slice, u32 shared,
                                               bool resident) {
  const int warp_k = threadIdx.x / 32 / kWarpsN;
  const int first = slice.begin + warp_k, steps = slice.steps();
  const u32 stage_bytes = tokens.count * kStageStride * 2;

  Step ring[LOADS];
#pragma unroll
  for (int i = 0; i < LOADS; ++i)
    if (rows.inside && first + i * WARPS_K < slice.end) load_step(ring[i], weight, rows, first + i * WARPS_K);
#if __CUDA_ARCH__ >= 900
  griddepcontrol_wait();  // weights depend on no kernel ahead; tokens, sums and counters do
  griddepcontrol_launch_dependents();
#endif

  int token_offset[kOctets];
#pragma unroll
  for (int octet = 0; octet < kOctets; ++octet) {
    const int token = min(octet * 8 + lane() % 8, tokens.count - 1);  // a missing token repeats the last one
    token_offset[octet] = (token * kStageStride + warp_k * kBlocks * 64 + lane() / 8 * 8) * 2;
  }
  const int preloaded = resident ? steps : kRing - 1;
  for (int i = 0; i < preloaded; ++i) {
    if (i < steps) load_tokens(shared + i * stage_bytes, tokens, slice.begin + i * WARPS_K);
    cp_async_commit_group();
  }
  if (resident) {
    cp_async_wait_group<0>();
    __syncthreads();
  }
  for (int base = 0; base < steps; base += LOADS) {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      const int step = base + i;
      if (step >= steps) break;
      if (!resident) {
        cp_async_wait_group<kRing - 2>();
        __syncthreads();
        const int next = step + kRing - 1;
        if (next < steps)
          load_tokens(shared + next % kRing * stage_bytes, tokens, slice.begin + next * WARPS_K);
        cp_async_commit_group();
      }
      const int unit = first + step * WARPS_K;
      if (rows.inside && unit < slice.end) {
        const u32 x = shared + (resident ? step : step % kRing) * stage_bytes;
        multiply_step(sums, ring[i], x, token_offset, rows.fragment);
        if (unit + LOADS * WARPS_K < slice.end) load_step(ring[i], weight, rows, unit + LOADS * WARPS_K);
      }
    }
  }
  cp_async_wait_group<0>();
  __syncthreads();
}

// A warp's sums to shared memory [WARPS_K][tokens][kSumStride].
__device__ __forceinline__ void store_sums(float* shared, const Sums& sums, int tokens) {
  const int warp = threadIdx.x / 32, row0 = warp % kWarpsN * kFragments * 16 + lane() / 4;
  float* target = shared + warp / kWarpsN * tokens * kSumStride + row0;
#pragma unroll
  for (int f = 0; f < kFragments; ++f)
#pragma unroll
    for (int octet = 0; octet < kOctets; ++octet)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = octet * 8 + lane() % 4 * 2 + i % 2;
        if (token < tokens) target[token * kSumStride + f * 16 + i / 2 * 8] = sums[f][octet][i];
      }
}

__device__ __forceinline__ void store_out(u16* out, const u16* bias, float4 v) {
  if (bias != nullptr)
    v = v + float4{Type::to_float(bias[0]), Type::to_float(bias[1]), Type::to_float(bias[2]),
                   Type::to_float(bias[3])};
  *reinterpret_cast<uint2*>(out) = {Type::from_floats(v.x, v.y), Type::from_floats(v.z, v.w)};
}

// Tells whether this block is the last of its tile's slices to arrive, and makes the others' sums visible.
__device__ __forceinline__ bool arrive_last(u32* counter) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atom_add_acq_rel(counter, 1) == gridDim.z - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  return last;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    int4_gemm(const u16* x, const uint4* qweight, const u16* scales, const u32* zeros, const u16* bias,
              u16* out, unsigned char* workspace, long long m, long long n, long long k, long long resident) {
  extern __shared__ __align__(16) unsigned char shared[];
  const int m_tiles = gridDim.x, splits = gridDim.z;
  const int token0 = blockIdx.x * TILE_M, row0 = blockIdx.y * TILE_N;
  const int n64 = static_cast<int>((n + 63) / 64), k64 = static_cast<int>((k + 63) / 64);
  const PackedWeight weight{qweight, scales, zeros, n64, k64};
  const Tokens tokens{x + token0 * k, min(TILE_M, static_cast<int>(m) - token0), static_cast<int>(k)};
  const int warp_row = row0 + threadIdx.x / 32 % kWarpsN * kFragments * 16;
  const Rows rows{warp_row / 64, warp_row / 16 % 4, warp_row < n64 * 64};
  const long long units = k64 / kBlocks;
  const int split = blockIdx.z;
  const Slice slice{static_cast<int>(units * split / splits), static_cast<int>(units * (split + 1) / splits)};

  Sums sums = {};
  multiply_slice(sums, weight, tokens, rows, slice, shared_address(shared), resident != 0);

  float* block_sums = reinterpret_cast<float*>(shared);
  store_sums(block_sums, sums, tokens.count);
  __syncthreads();

  constexpr int kQuads = TILE_N / 4;
  const int tile = blockIdx.y * m_tiles + blockIdx.x;
  float4* partials = reinterpret_cast<float4*>(workspace + kCounterBytes) +
                     static_cast<u64>(tile) * splits * TILE_M * kQuads;
  for (int i = threadIdx.x; i < tokens.count * kQuads; i += kThreads) {
    const int token = i / kQuads, column = i % kQuads * 4;
    const float* at = block_sums + token * kSumStride + column;
    float4 sum = *reinterpret_cast<const float4*>(at);
    for (int warp = 1; warp < WARPS_K; ++warp)
      sum = sum + *reinterpret_cast<const float4*>(at + warp * tokens.count * kSumStride);
    if (splits > 1)
      st_global_cg(partials + split * TILE_M * kQuads + i, sum);
    else if (row0 + column < n)
      store_out(out + (token0 + token) * n + row0 + column, bias ? bias + row0 + column : nullptr, sum);
  }
  if (splits == 1 || !arrive_last(reinterpret_cast<u32*>(workspace) + tile)) return;
  for (int i = threadIdx.x; i < tokens.count * kQuads; i += kThreads) {
    const int token = i / kQuads, column = i % kQuads * 4;
    if (row0 + column >= n) continue;
    float4 sum = ld_global_cg(partials + i);
    for (int other = 1; other < splits; ++other)
      sum = sum + ld_global_cg(partials + other * TILE_M * kQuads + i);
    store_out(out + (token0 + token) * n + row0 + column, bias ? bias + row0 + column : nullptr, sum);
  }
}
