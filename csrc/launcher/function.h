#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "launcher/driver.h"

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
// only parameters of 8 bytes. All members throw DriverError.
class CudaFunction {
 public:
  static constexpr int kMaxArguments = 24;

  CudaFunction(std::string_view cubin, std::string name, int device);
  ~CudaFunction();
  CudaFunction(const CudaFunction&) = delete;
  CudaFunction& operator=(const CudaFunction&) = delete;

  // Enqueues the kernel. Allocates nothing on the device and never waits for it.
  void launch(const Launch& launch, const std::uint64_t* arguments, int count);

  int registers() const { return registers_; }
  int local_bytes() const { return local_bytes_; }
  int static_shared_bytes() const { return static_shared_bytes_; }
  int max_threads() const { return max_threads_; }

 private:
  int attribute(FunctionAttribute attribute) const;
  void find_function();
  void allow_shared_bytes(const Launch& launch);
  [[noreturn]] void fail(Result result, const char* call, const Launch& launch) const;

  const Driver& driver_;
  std::string name_;
  Context context_ = nullptr;
  Module module_ = nullptr;
  Function function_ = nullptr;
  std::optional<int> parameters_;
  int registers_ = 0;
  int local_bytes_ = 0;
  int static_shared_bytes_ = 0;
  int max_threads_ = 0;
  std::atomic<int> dynamic_shared_limit_{0};
  std::mutex raising_limit_;
};

// Leaves the modules of every later destructor loaded: at exit the driver goes first, and takes them along.
void keep_modules();

}  // namespace autotune::launcher
