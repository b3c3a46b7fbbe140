// sm_90a: warpgroup products, tensor copies, and what else family `wgmma` needs; one PTX instruction per
// function.
#pragma once

#include "common/ptx.cuh"

// CUtensorMap: made by the driver, read by the copy engine.
struct alignas(64) TensorMap {
  u64 words[16];
};

// A box of the map's tensor from this column and row on, by the copy engine, which reports to the barrier.
__device__ __forceinline__ void cp_async_bulk_tensor_2d(u32 shared, const TensorMap* map, int column, int row,
                                                        u32 barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], "
      "[%4];" ::"r"(shared),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// The map itself, which the first copy would wait for.
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void cp_async_ca_4(u32 shared, const u32* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// 16 bytes to a block of the cluster, whose barrier counts them.
__device__ __forceinline__ void st_async_v4(u32 address, float4 v, u32 barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          address),
      "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void st_shared_v4(u32 address, float4 v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v.x), "f"(v.y), "f"(v.z),
               "f"(v.w)
               : "memory");
}

// Transposes an 8x8 matrix of 16-bit values, of which lane l has row l/4, columns 2(l%4) and 2(l%4)+1.
__device__ __forceinline__ u32 movmatrix_trans(u32 a) {
  u32 v;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(v) : "r"(a));
  return v;
}

// A named barrier of the block, for so many of its threads.
template <int Threads>
__device__ __forceinline__ void bar_sync(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(Threads) : "memory");
}

// Counts there without waiting; what came before is seen by those who wait.
template <int Threads>
__device__ __forceinline__ void bar_arrive(int barrier) {
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(Threads) : "memory");
}

// Orders registers, before the first product that uses them.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most `Pending` of the warpgroup's groups are under way.
template <int Pending>
__device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

// Keeps what reads a sum behind the wait for it.
__device__ __forceinline__ void keep(float& sum) { asm volatile("" : "+f"(sum)::"memory"); }

// Keeps what makes an operand ahead of the fence that orders it.
__device__ __forceinline__ void keep(uint4& a) {
  asm volatile("" : "+r"(a.x), "+r"(a.y), "+r"(a.z), "+r"(a.w)::"memory");
}

// d[64, n] = a[64, 16] b[16, n], or d += a b, by four warps with 16 rows each: a and d are those of
// mma.m16n8k16, d for eight columns after eight. `b` describes n rows of k in shared memory, swizzled by 128
// bytes. The lists name the registers of d for 8 to 128 columns.
#define D8 "%0, %1, %2, %3"
#define D16 D8 ", %4, %5, %6, %7"
#define D32 D16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define D64 D32 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define D128                                                                                              \
  D64 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, " \
      "%51, "                                                                                             \
      "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUMS(o) "+f"(d[o][0]), "+f"(d[o][1]), "+f"(d[o][2]), "+f"(d[o][3])
#define SUMS8 SUMS(0)
#define SUMS16 SUMS8, SUMS(1)
#define SUMS32 SUMS16, SUMS(2), SUMS(3)
#define SUMS64 SUMS32, SUMS(4), SUMS(5), SUMS(6), SUMS(7)
#define SUMS128 SUMS64, SUMS(8), SUMS(9), SUMS(10), SUMS(11), SUMS(12), SUMS(13), SUMS(14), SUMS(15)

#define WGMMA(n, type, a_list, b_name, adds)                                                           \
  __device__ __forceinline__ void wgmma_##type(float (&d)[n / 8][4], uint4 a, u64 b, bool add) {       \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " adds ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n \
                 "k16.f32." #type "." #type " {" D##n "}, {" a_list "}, " b_name ", p, 1, 1, 0;\n}"    \
                 : SUMS##n                                                                             \
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"(static_cast<u32>(add)));        \
  }
#define WGMMA_OF_BOTH_TYPES(n, a_list, b_name, adds) \
  WGMMA(n, f16, a_list, b_name, adds)                \
  WGMMA(n, bf16, a_list, b_name, adds)

WGMMA_OF_BOTH_TYPES(8, "%4, %5, %6, %7", "%8", "%9")
WGMMA_OF_BOTH_TYPES(16, "%8, %9, %10, %11", "%12", "%13")
WGMMA_OF_BOTH_TYPES(32, "%16, %17, %18, %19", "%20", "%21")
WGMMA_OF_BOTH_TYPES(64, "%32, %33, %34, %35", "%36", "%37")
WGMMA_OF_BOTH_TYPES(128, "%64, %65, %66, %67", "%68", "%69")

#undef WGMMA_OF_BOTH_TYPES
#undef WGMMA
#undef SUMS128
#undef SUMS64
#undef SUMS32
#undef SUMS16
#undef SUMS8
#undef SUMS
#undef D128
#undef D64
#undef D32
#undef D16
#undef D8
