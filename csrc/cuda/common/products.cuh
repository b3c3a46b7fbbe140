// Products of a warpgroup: d[64, n] = a[64, 16] b[16, n], or d += a b, for every n that is a multiple of 8 up
// to 256. Its four warps have 16 rows each: a and d are those of mma.m16n8k16, d for eight columns after
// eight. `b` describes n rows of k in shared memory, swizzled by 128 bytes.
#pragma once

#include "common/ptx.cuh"

// The registers of d by number, for n columns.
#define D8 "%0, %1, %2, %3"
#define D16 D8 ", %4, %5, %6, %7"
#define D24 D16 ", %8, %9, %10, %11"
#define D32 D24 ", %12, %13, %14, %15"
#define D40 D32 ", %16, %17, %18, %19"
#define D48 D40 ", %20, %21, %22, %23"
#define D56 D48 ", %24, %25, %26, %27"
#define D64 D56 ", %28, %29, %30, %31"
#define D72 D64 ", %32, %33, %34, %35"
#define D80 D72 ", %36, %37, %38, %39"
#define D88 D80 ", %40, %41, %42, %43"
#define D96 D88 ", %44, %45, %46, %47"
#define D104 D96 ", %48, %49, %50, %51"
#define D112 D104 ", %52, %53, %54, %55"
#define D120 D112 ", %56, %57, %58, %59"
#define D128 D120 ", %60, %61, %62, %63"
#define D136 D128 ", %64, %65, %66, %67"
#define D144 D136 ", %68, %69, %70, %71"
#define D152 D144 ", %72, %73, %74, %75"
#define D160 D152 ", %76, %77, %78, %79"
#define D168 D160 ", %80, %81, %82, %83"
#define D176 D168 ", %84, %85, %86, %87"
#define D184 D176 ", %88, %89, %90, %91"
#define D192 D184 ", %92, %93, %94, %95"
#define D200 D192 ", %96, %97, %98, %99"
#define D208 D200 ", %100, %101, %102, %103"
#define D216 D208 ", %104, %105, %106, %107"
#define D224 D216 ", %108, %109, %110, %111"
#define D232 D224 ", %112, %113, %114, %115"
#define D240 D232 ", %116, %117, %118, %119"
#define D248 D240 ", %120, %121, %122, %123"
#define D256 D248 ", %124, %125, %126, %127"

#define SUMS(o) "+f"(d[o][0]), "+f"(d[o][1]), "+f"(d[o][2]), "+f"(d[o][3])
#define SUMS8 SUMS(0)
#define SUMS16 SUMS8, SUMS(1)
#define SUMS24 SUMS16, SUMS(2)
#define SUMS32 SUMS24, SUMS(3)
#define SUMS40 SUMS32, SUMS(4)
#define SUMS48 SUMS40, SUMS(5)
#define SUMS56 SUMS48, SUMS(6)
#define SUMS64 SUMS56, SUMS(7)
#define SUMS72 SUMS64, SUMS(8)
#define SUMS80 SUMS72, SUMS(9)
#define SUMS88 SUMS80, SUMS(10)
#define SUMS96 SUMS88, SUMS(11)
#define SUMS104 SUMS96, SUMS(12)
#define SUMS112 SUMS104, SUMS(13)
#define SUMS120 SUMS112, SUMS(14)
#define SUMS128 SUMS120, SUMS(15)
#define SUMS136 SUMS128, SUMS(16)
#define SUMS144 SUMS136, SUMS(17)
#define SUMS152 SUMS144, SUMS(18)
#define SUMS160 SUMS152, SUMS(19)
#define SUMS168 SUMS160, SUMS(20)
#define SUMS176 SUMS168, SUMS(21)
#define SUMS184 SUMS176, SUMS(22)
#define SUMS192 SUMS184, SUMS(23)
#define SUMS200 SUMS192, SUMS(24)
#define SUMS208 SUMS200, SUMS(25)
#define SUMS216 SUMS208, SUMS(26)
#define SUMS224 SUMS216, SUMS(27)
#define SUMS232 SUMS224, SUMS(28)
#define SUMS240 SUMS232, SUMS(29)
#define SUMS248 SUMS240, SUMS(30)
#define SUMS256 SUMS248, SUMS(31)

// The registers of a, that of the descriptor of b and that of `add` come behind those of d.
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
WGMMA_OF_BOTH_TYPES(24, "%12, %13, %14, %15", "%16", "%17")
WGMMA_OF_BOTH_TYPES(32, "%16, %17, %18, %19", "%20", "%21")
WGMMA_OF_BOTH_TYPES(40, "%20, %21, %22, %23", "%24", "%25")
WGMMA_OF_BOTH_TYPES(48, "%24, %25, %26, %27", "%28", "%29")
WGMMA_OF_BOTH_TYPES(56, "%28, %29, %30, %31", "%32", "%33")
WGMMA_OF_BOTH_TYPES(64, "%32, %33, %34, %35", "%36", "%37")
WGMMA_OF_BOTH_TYPES(72, "%36, %37, %38, %39", "%40", "%41")
WGMMA_OF_BOTH_TYPES(80, "%40, %41, %42, %43", "%44", "%45")
WGMMA_OF_BOTH_TYPES(88, "%44, %45, %46, %47", "%48", "%49")
WGMMA_OF_BOTH_TYPES(96, "%48, %49, %50, %51", "%52", "%53")
WGMMA_OF_BOTH_TYPES(104, "%52, %53, %54, %55", "%56", "%57")
WGMMA_OF_BOTH_TYPES(112, "%56, %57, %58, %59", "%60", "%61")
WGMMA_OF_BOTH_TYPES(120, "%60, %61, %62, %63", "%64", "%65")
WGMMA_OF_BOTH_TYPES(128, "%64, %65, %66, %67", "%68", "%69")
WGMMA_OF_BOTH_TYPES(136, "%68, %69, %70, %71", "%72", "%73")
WGMMA_OF_BOTH_TYPES(144, "%72, %73, %74, %75", "%76", "%77")
WGMMA_OF_BOTH_TYPES(152, "%76, %77, %78, %79", "%80", "%81")
WGMMA_OF_BOTH_TYPES(160, "%80, %81, %82, %83", "%84", "%85")
WGMMA_OF_BOTH_TYPES(168, "%84, %85, %86, %87", "%88", "%89")
WGMMA_OF_BOTH_TYPES(176, "%88, %89, %90, %91", "%92", "%93")
WGMMA_OF_BOTH_TYPES(184, "%92, %93, %94, %95", "%96", "%97")
WGMMA_OF_BOTH_TYPES(192, "%96, %97, %98, %99", "%100", "%101")
WGMMA_OF_BOTH_TYPES(200, "%100, %101, %102, %103", "%104", "%105")
WGMMA_OF_BOTH_TYPES(208, "%104, %105, %106, %107", "%108", "%109")
WGMMA_OF_BOTH_TYPES(216, "%108, %109, %110, %111", "%112", "%113")
WGMMA_OF_BOTH_TYPES(224, "%112, %113, %114, %115", "%116", "%117")
WGMMA_OF_BOTH_TYPES(232, "%116, %117, %118, %119", "%120", "%121")
WGMMA_OF_BOTH_TYPES(240, "%120, %121, %122, %123", "%124", "%125")
WGMMA_OF_BOTH_TYPES(248, "%124, %125, %126, %127", "%128", "%129")
WGMMA_OF_BOTH_TYPES(256, "%128, %129, %130, %131", "%132", "%133")

#undef WGMMA_OF_BOTH_TYPES
#undef WGMMA
#undef SUMS

// d += a b, or d = a b, in the type of the translation unit.
template <int Octets>
__device__ __forceinline__ void start_product(float (&d)[Octets][4], uint4 a, u64 b, bool fresh) {
#if BF16
  wgmma_bf16(d, a, b, !fresh);
#else
  wgmma_f16(d, a, b, !fresh);
#endif
}

// Describes x in shared memory: K-major, swizzled by 128 bytes, 1024 bytes from eight tokens to the next
// eight. The low word is made the same in all lanes, which spares a move to uniform registers per product; no
// offset carries.
__device__ __forceinline__ u32 descriptor_low(u32 shared) {
  return __shfl_sync(0xFFFFFFFFu, (shared >> 4) + (1u << 16), 0);
}
__device__ __forceinline__ u64 descriptor(u32 low, u32 offset) {
  return static_cast<u64>(64u | 1u << 30) << 32 | (low + offset / 16);
}
