#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "launcher/driver.h"
#include "launcher/tensor_map.h"

namespace autotune::launcher {

// Where and how a kernel runs: blocks, threads of a block, dynamic shared memory.
struct Launch {
  std::array<unsigned, 3> grid;
  unsigned block;
  unsigned shared_bytes;
  Stream stream;
  // Lets the kernel start before its predecessor on the stream has ended; the kernel itself waits for it.
  bool programmatic;
};

// One kernel of a cubin, loaded into a device's primary context, which torch uses too. The kernel takes
// only parameters of 8 bytes; with `boxes`, the first is the tensor map of the matrix whose address and rows
// the first two arguments are. All members throw DriverError.
class CudaFunction {
 public:
  static constexpr int kMaxArguments = 24;

  CudaFunction(std::string_view cubin, std::string name, int device, const std::optional<Boxes>& boxes);

  // Enqueues the kernel. Allocates nothing on the device and never waits for it.
  void launch(const Launch& launch, const std::uint64_t* arguments, int count);

  int registers() const { return registers_; }
  int local_bytes() const { return local_bytes_; }
  int static_shared_bytes() const { return static_shared_bytes_; }
  int max_threads() const { return max_threads_; }

 private:
  int attribute(FunctionAttribute attribute) const;
  void find_function(Module module);
  [[noreturn]] void fail(Result result, const Launch& launch) const;

  const Driver& driver_;
  std::string name_;
  Context context_ = nullptr;
  Function function_ = nullptr;
  std::optional<TensorMaps> maps_;
  int registers_ = 0;
  int local_bytes_ = 0;
  int static_shared_bytes_ = 0;
  int max_threads_ = 0;
};

}  // namespace autotune::launcher
