// What we use of cuBLASLt, declared here so that building needs no CUDA toolkit. Names, numbers and layouts
// are its binary interface, the same in the libraries of CUDA 11 to 13. It comes with every CUDA build of
// torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "launcher/driver.h"

namespace autotune::launcher {

using LtStatus = int;
using LtHandle = struct LtHandleTag*;
using LtMatmul = struct LtMatmulTag*;
using LtLayout = struct LtLayoutTag*;
using LtPreference = struct LtPreferenceTag*;

enum LtType : int { kLtFloat32 = 0, kLtFloat16 = 2, kLtBfloat16 = 14 };
enum LtCompute : int { kLtComputeFloat32 = 68 };
enum LtMatmulAttribute : int { kLtTransposeA = 3, kLtEpilogue = 7, kLtBiasPointer = 8 };
enum LtEpilogue : int { kLtBias = 4 };
enum LtPreferenceAttribute : int {
  kLtWorkspaceBytes = 1,
  kLtReductionSchemes = 3,
  kLtAlignmentB = 6,
  kLtAlignmentC = 7,
  kLtAlignmentD = 8,
};
// Partial sums in fp32, each in a place of its own: they keep their digits, and results repeat bit for bit.
enum LtReductionScheme : std::uint32_t { kLtFloat32Partials = 2 };

struct LtAlgorithm {
  std::uint64_t words[8];
};

struct LtHeuristic {
  LtAlgorithm algorithm;
  std::size_t workspace_bytes;
  LtStatus state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(LtHeuristic) == 96);

struct CublasLt {
  LtStatus (*cublasLtCreate)(LtHandle* handle) = nullptr;
  LtStatus (*cublasLtMatmulDescCreate)(LtMatmul* matmul, LtCompute compute, LtType scale) = nullptr;
  LtStatus (*cublasLtMatmulDescDestroy)(LtMatmul matmul) = nullptr;
  LtStatus (*cublasLtMatmulDescSetAttribute)(LtMatmul matmul, LtMatmulAttribute attribute, const void* value,
                                             std::size_t bytes) = nullptr;
  LtStatus (*cublasLtMatrixLayoutCreate)(LtLayout* layout, LtType type, std::uint64_t rows,
                                         std::uint64_t columns, std::int64_t stride) = nullptr;
  LtStatus (*cublasLtMatrixLayoutDestroy)(LtLayout layout) = nullptr;
  LtStatus (*cublasLtMatmulPreferenceCreate)(LtPreference* preference) = nullptr;
  LtStatus (*cublasLtMatmulPreferenceDestroy)(LtPreference preference) = nullptr;
  LtStatus (*cublasLtMatmulPreferenceSetAttribute)(LtPreference preference, LtPreferenceAttribute attribute,
                                                   const void* value, std::size_t bytes) = nullptr;
  LtStatus (*cublasLtMatmulAlgoGetHeuristic)(LtHandle handle, LtMatmul matmul, LtLayout a, LtLayout b,
                                             LtLayout c, LtLayout d, LtPreference preference, int wanted,
                                             LtHeuristic* found, int* count) = nullptr;
  LtStatus (*cublasLtMatmul)(LtHandle handle, LtMatmul matmul, const void* alpha, const void* a, LtLayout la,
                             const void* b, LtLayout lb, const void* beta, const void* c, LtLayout lc,
                             void* d, LtLayout ld, const LtAlgorithm* algorithm, void* workspace,
                             std::size_t workspace_bytes, Stream stream) = nullptr;

  // Throws DriverError when `status` is an error of the named call.
  void check(LtStatus status, const char* call) const;
};

// The library of this process, opened by the first call: the one that torch has loaded, else the newest.
// Throws DriverError where there is none.
const CublasLt& cublaslt();

}  // namespace autotune::launcher
