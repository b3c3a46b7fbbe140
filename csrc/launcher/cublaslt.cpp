#include "launcher/cublaslt.h"

#include <dlfcn.h>

#include <type_traits>

namespace autotune::launcher {

namespace {

constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"};

void* open_library() {
  for (const int loaded : {RTLD_NOLOAD, 0})
    for (const char* name : kNames)
      if (void* library = dlopen(name, RTLD_LAZY | RTLD_LOCAL | loaded)) return library;
  throw DriverError("cuBLASLt not found: install a CUDA build of torch, which brings it");
}

CublasLt find_all() {
  CublasLt found;
  void* library = open_library();
  const auto need = [library](const char* symbol, auto& function) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, symbol));
    if (function == nullptr) throw DriverError("cuBLASLt has no " + std::string(symbol));
  };
  need("cublasLtCreate", found.cublasLtCreate);
  need("cublasLtMatmulDescCreate", found.cublasLtMatmulDescCreate);
  need("cublasLtMatmulDescDestroy", found.cublasLtMatmulDescDestroy);
  need("cublasLtMatmulDescSetAttribute", found.cublasLtMatmulDescSetAttribute);
  need("cublasLtMatrixLayoutCreate", found.cublasLtMatrixLayoutCreate);
  need("cublasLtMatrixLayoutDestroy", found.cublasLtMatrixLayoutDestroy);
  need("cublasLtMatmulPreferenceCreate", found.cublasLtMatmulPreferenceCreate);
  need("cublasLtMatmulPreferenceDestroy", found.cublasLtMatmulPreferenceDestroy);
  need("cublasLtMatmulPreferenceSetAttribute", found.cublasLtMatmulPreferenceSetAttribute);
  need("cublasLtMatmulAlgoGetHeuristic", found.cublasLtMatmulAlgoGetHeuristic);
  need("cublasLtMatmul", found.cublasLtMatmul);
  return found;
}

}  // namespace

void CublasLt::check(LtStatus status, const char* call) const {
  if (status != 0) throw DriverError(std::string(call) + ": cuBLAS status " + std::to_string(status));
}

const CublasLt& cublaslt() {
  static const CublasLt found = find_all();
  return found;
}

}  // namespace autotune::launcher
