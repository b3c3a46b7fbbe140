#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "launcher/dense_matmul.h"
#include "launcher/function.h"

namespace autotune::launcher {

// Some rows of a weight, and how the kernel that dequantises them is launched.
struct Chunk {
  Launch launch;
  std::uint64_t start, rows;
};

// Device addresses; zeros and bias may be 0. `workspace` is that of a DenseMatmul and, behind it, the largest
// chunk of dequantised weights.
struct DequantOperands {
  std::uint64_t x, qweight, scales, zeros, bias, out, workspace, m;
};

// out[m, n] = x[m, k] @ dequant(w[n, k]).T + bias[n]: chunk by chunk a kernel that dequantises and a dense
// product, so that a call of many chunks costs the host two launches for each. All members throw DriverError.
class DequantMatmul {
 public:
  DequantMatmul(std::string_view cubin, std::string name, int device, std::uint64_t n, std::uint64_t k,
                bool bf16, std::vector<Chunk> chunks)
      : function_(cubin, std::move(name), device, std::nullopt),
        matmul_(device, n, k, bf16),
        n_(n),
        k_(k),
        chunks_(std::move(chunks)) {}

  // Enqueues all. Allocates nothing on the device and never waits for it.
  void run(const DequantOperands& operands, Stream stream);

 private:
  CudaFunction function_;
  DenseMatmul matmul_;
  const std::uint64_t n_, k_;
  const std::vector<Chunk> chunks_;
};

}  // namespace autotune::launcher
