#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <mutex>

#include "launcher/cublaslt.h"

namespace autotune::launcher {

// out[m, rows] = x[m, k] @ w[rows, k].T + bias[rows], all row-major, of fp16 or bf16, by cuBLASLt. The rows
// of out are n elements apart. Device addresses; bias may be 0. `workspace` is its kWorkspaceBytes.
struct DenseOperands {
  std::uint64_t x, w, bias, out, workspace;
  std::uint64_t m, rows;
};

// Such products for one k, n and dtype on one device. What cuBLASLt chose for the last few sizes is kept,
// because its choice takes longer than the launch. A choice for more tokens does not serve fewer: its kernels
// are slow where their tiles reach past the last token, up to 1.3 times for 129 tokens of 6144x4096 with the
// choice for 256 on an H200. All members throw DriverError.
class DenseMatmul {
 public:
  static constexpr std::size_t kWorkspaceBytes = 32 << 20;

  DenseMatmul(int device, std::uint64_t n, std::uint64_t k, bool bf16);
  ~DenseMatmul();
  DenseMatmul(const DenseMatmul&) = delete;
  DenseMatmul& operator=(const DenseMatmul&) = delete;

  // Enqueues the product. Allocates nothing on the device and never waits for it.
  void run(const DenseOperands& operands, Stream stream);

 private:
  // What decides cuBLASLt's choice.
  struct Key {
    std::uint64_t m, rows;
    std::uint32_t x_alignment, out_alignment;
    bool has_bias;
    bool operator==(const Key& other) const;
  };
  struct Choice {
    Key key;
    LtLayout w, x, out;
    LtAlgorithm algorithm;
  };

  const Choice& choice_for(const Key& key);
  Choice choose(const Key& key) const;
  LtMatmul matmul(bool has_bias) const { return matmuls_[has_bias]; }
  void destroy(const Choice& choice) const;

  const Driver& driver_;
  const CublasLt& library_;
  Context context_;
  LtHandle handle_ = nullptr;
  LtMatmul matmuls_[2] = {};  // without and with bias
  const std::uint64_t n_, k_;
  const LtType type_;
  std::mutex mutex_;
  std::list<Choice> choices_;
};

}  // namespace autotune::launcher
