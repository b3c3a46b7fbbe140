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

// The same to the blocks of the cluster that `blocks` has a bit for, at the same places.
__device__ __forceinline__ void cp_async_bulk_tensor_2d_multicast(u32 shared, const TensorMap* map,
                                                                  int column, int row, u32 barrier,
                                                                  u16 blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
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

// At a barrier of any block of the cluster. With .release.cluster it would wait for all accesses under way.
__device__ __forceinline__ void mbarrier_arrive_cluster(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Registers of each of the warpgroup's threads from here on.
template <int Registers>
__device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
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
