#include "launcher/dense_matmul.h"

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "launcher/context.h"

namespace autotune::launcher {

namespace {

constexpr std::size_t kMostChoices = 32;

// Made once for each device, with its context current, and kept for the life of the process.
LtHandle handle_of(const CublasLt& library, int device) {
  static std::mutex mutex;
  static std::map<int, LtHandle> made;
  const std::lock_guard<std::mutex> lock(mutex);
  LtHandle& handle = made[device];
  if (handle == nullptr) library.check(library.cublasLtCreate(&handle), "cublasLtCreate");
  return handle;
}

// The largest power of two, up to 256, of which the address is a multiple.
std::uint32_t alignment_of(std::uint64_t address) {
  const auto low = static_cast<std::uint32_t>(address | 256);
  return low & (~low + 1);
}

}  // namespace

bool DenseMatmul::Key::operator==(const Key& other) const {
  const auto all = [](const Key& key) {
    return std::tie(key.m, key.rows, key.x_alignment, key.out_alignment, key.has_bias);
  };
  return all(*this) == all(other);
}

DenseMatmul::DenseMatmul(int device, std::uint64_t n, std::uint64_t k, bool bf16)
    : driver_(available_driver()),
      library_(cublaslt()),
      context_(primary_context(driver_, device)),
      n_(n),
      k_(k),
      type_(bf16 ? kLtBfloat16 : kLtFloat16) {
  const CurrentContext current(driver_, context_);
  handle_ = handle_of(library_, device);
  const int transposed = 1, bias = kLtBias;
  for (LtMatmul& matmul : matmuls_) {
    library_.check(library_.cublasLtMatmulDescCreate(&matmul, kLtComputeFloat32, kLtFloat32),
                   "cublasLtMatmulDescCreate");
    library_.check(
        library_.cublasLtMatmulDescSetAttribute(matmul, kLtTransposeA, &transposed, sizeof(transposed)),
        "cublasLtMatmulDescSetAttribute");
  }
  library_.check(library_.cublasLtMatmulDescSetAttribute(matmul(true), kLtEpilogue, &bias, sizeof(bias)),
                 "cublasLtMatmulDescSetAttribute");
}

DenseMatmul::~DenseMatmul() {
  for (const Choice& choice : choices_) destroy(choice);
  for (LtMatmul matmul : matmuls_) library_.cublasLtMatmulDescDestroy(matmul);
}

void DenseMatmul::destroy(const Choice& choice) const {
  for (LtLayout layout : {choice.w, choice.x, choice.out}) library_.cublasLtMatrixLayoutDestroy(layout);
}

void DenseMatmul::run(const DenseOperands& operands, Stream stream) {
  const CurrentContext current(driver_, context_);
  const bool has_bias = operands.bias != 0;
  const float one = 1.f, zero = 0.f;
  const auto pointer = [](std::uint64_t address) { return reinterpret_cast<void*>(address); };
  // The bias is an attribute of the product that all threads share.
  const std::lock_guard<std::mutex> lock(mutex_);
  if (has_bias)
    library_.check(library_.cublasLtMatmulDescSetAttribute(matmul(true), kLtBiasPointer, &operands.bias,
                                                           sizeof(operands.bias)),
                   "cublasLtMatmulDescSetAttribute");
  const Choice& chosen =
      choice_for({operands.m, operands.rows, alignment_of(operands.x), alignment_of(operands.out), has_bias});
  library_.check(library_.cublasLtMatmul(handle_, matmul(has_bias), &one, pointer(operands.w), chosen.w,
                                         pointer(operands.x), chosen.x, &zero, pointer(operands.out),
                                         chosen.out, pointer(operands.out), chosen.out, &chosen.algorithm,
                                         pointer(operands.workspace), kWorkspaceBytes, stream),
                 "cublasLtMatmul");
}

const DenseMatmul::Choice& DenseMatmul::choice_for(const Key& key) {
  const auto known =
      std::find_if(choices_.begin(), choices_.end(), [&](const Choice& choice) { return choice.key == key; });
  if (known != choices_.end()) {
    choices_.splice(choices_.begin(), choices_, known);
  } else {
    choices_.push_front(choose(key));
    if (choices_.size() > kMostChoices) {
      destroy(choices_.back());
      choices_.pop_back();
    }
  }
  return choices_.front();
}

// cuBLAS reads columns first, so to it the product is out^T[rows, m] = w^T[k, rows].T @ x^T[k, m].
DenseMatmul::Choice DenseMatmul::choose(const Key& key) const {
  Choice choice{key, nullptr, nullptr, nullptr, {}};
  const auto layout = [&](LtLayout& made, std::uint64_t rows, std::uint64_t columns, std::uint64_t stride) {
    library_.check(
        library_.cublasLtMatrixLayoutCreate(&made, type_, rows, columns, static_cast<std::int64_t>(stride)),
        "cublasLtMatrixLayoutCreate");
  };
  layout(choice.w, k_, key.rows, k_);
  layout(choice.x, k_, key.m, k_);
  layout(choice.out, key.rows, key.m, n_);
  LtPreference preference = nullptr;
  library_.check(library_.cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  const auto prefer = [&](LtPreferenceAttribute attribute, const auto& value) {
    library_.check(
        library_.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
        "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(kLtWorkspaceBytes, static_cast<std::uint64_t>(kWorkspaceBytes));
  prefer(kLtReductionSchemes, static_cast<std::uint32_t>(kLtFloat32Partials));
  prefer(kLtAlignmentB, key.x_alignment);
  prefer(kLtAlignmentC, key.out_alignment);
  prefer(kLtAlignmentD, key.out_alignment);
  LtHeuristic found{};
  int count = 0;
  const LtStatus status =
      library_.cublasLtMatmulAlgoGetHeuristic(handle_, matmul(key.has_bias), choice.w, choice.x, choice.out,
                                              choice.out, preference, 1, &found, &count);
  library_.cublasLtMatmulPreferenceDestroy(preference);
  if (status != 0 || count == 0) {
    destroy(choice);
    throw DriverError("cublasLtMatmulAlgoGetHeuristic: cuBLAS status " + std::to_string(status) +
                      " for a product of " + std::to_string(key.m) + " x " + std::to_string(key.rows) +
                      " x " + std::to_string(k_));
  }
  choice.algorithm = found.algorithm;
  return choice;
}

}  // namespace autotune::launcher
