#include "launcher/function.h"

#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "launcher/context.h"

namespace autotune::launcher {

namespace {

// While it lives, this thread may load modules without ending a stream capture.
class RelaxedCapture {
 public:
  explicit RelaxedCapture(const Driver& driver) : driver_(driver) {
    driver_.cuThreadExchangeStreamCaptureMode(&mode_);
  }
  ~RelaxedCapture() { driver_.cuThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  const Driver& driver_;
  CaptureMode mode_ = kCaptureRelaxed;
};

// The cubin as a module of the current context, loaded once and for the life of the process: a captured graph
// may outlive everything in Python that knows of its kernels.
Module loaded_module(const Driver& driver, int device, std::string_view cubin) {
  static std::mutex mutex;
  static std::map<std::pair<int, std::string>, Module> loaded;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [entry, is_new] = loaded.try_emplace({device, std::string(cubin)}, nullptr);
  if (is_new) {
    const Result result = driver.cuModuleLoadData(&entry->second, entry->first.second.data());
    if (result != kSuccess) loaded.erase(entry);
    driver.check(result, "cuModuleLoadData");
  }
  return entry->second;
}

template <typename Value>
std::uint64_t read(std::string_view bytes, std::size_t offset) {
  Value value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

// The driver is told no length and trusts the headers of an ELF image, so a cut one must not reach it.
bool is_whole_cubin(std::string_view bytes) {
  constexpr std::size_t kHeaderBytes = 64;
  constexpr std::uint16_t kMachineCuda = 190;
  if (bytes.size() < kHeaderBytes || bytes.substr(0, 4) != "\177ELF") return false;
  if (read<std::uint16_t>(bytes, 18) != kMachineCuda) return false;
  auto fits = [&](std::size_t offset, std::size_t entry_bytes, std::size_t entries) {
    const std::uint64_t start = read<std::uint64_t>(bytes, offset);
    const std::uint64_t length =
        read<std::uint16_t>(bytes, entry_bytes) * read<std::uint16_t>(bytes, entries);
    return start <= bytes.size() && length <= bytes.size() - start;
  };
  const bool program_headers = fits(32, 54, 56);
  const bool section_headers = fits(40, 58, 60);
  return program_headers && section_headers;
}

}  // namespace

CudaFunction::CudaFunction(std::string_view cubin, std::string name, int device,
                           const std::optional<Boxes>& boxes)
    : driver_(available_driver()), name_(std::move(name)) {
  context_ = primary_context(driver_, device);
  if (!is_whole_cubin(cubin)) {
    throw DriverError("kernel " + name_ + ": the " + std::to_string(cubin.size()) +
                      " bytes given are not a whole cubin; compile the kernel again");
  }
  const CurrentContext current(driver_, context_);
  const RelaxedCapture relaxed(driver_);
  find_function(loaded_module(driver_, device, cubin));
  const int shared_bytes = driver_.devices[device].shared_bytes - static_shared_bytes_;
  driver_.check(driver_.cuFuncSetAttribute(function_, kMaxDynamicSharedBytes, shared_bytes),
                "cuFuncSetAttribute");
  if (boxes) maps_.emplace(driver_, *boxes);
}

void CudaFunction::find_function(Module module) {
  const std::string call = "cuModuleGetFunction of kernel " + name_;
  driver_.check(driver_.cuModuleGetFunction(&function_, module, name_.c_str()), call.c_str());
  registers_ = attribute(kRegisters);
  local_bytes_ = attribute(kLocalBytes);
  static_shared_bytes_ = attribute(kStaticSharedBytes);
  max_threads_ = attribute(kMaxThreads);
}

int CudaFunction::attribute(FunctionAttribute attribute) const {
  int value = 0;
  driver_.check(driver_.cuFuncGetAttribute(&value, attribute, function_), "cuFuncGetAttribute");
  return value;
}

void CudaFunction::launch(const Launch& launch, const std::uint64_t* arguments, int count) {
  if (count > kMaxArguments) {
    throw DriverError("kernel " + name_ + " takes at most " + std::to_string(kMaxArguments) +
                      " arguments, not " + std::to_string(count));
  }
  const CurrentContext current(driver_, context_);
  void* parameters[kMaxArguments];
  for (int i = 0; i < count; ++i) parameters[i] = const_cast<std::uint64_t*>(arguments + i);
  TensorMap map;
  void** first = parameters;
  if (maps_) {
    if (count < 2) throw DriverError("kernel " + name_ + " takes a matrix: its address and rows come first");
    map = maps_->of(arguments[0], arguments[1]);
    first = parameters + 1;
    *first = &map;
  }
  LaunchAttribute programmatic{};
  programmatic.id = LaunchAttribute::kProgrammaticSerialization;
  programmatic.value.allowed = 1;
  LaunchConfig config{};
  for (int i = 0; i < 3; ++i) config.grid[i] = launch.grid[i];
  config.block[0] = launch.block;
  config.block[1] = config.block[2] = 1;
  config.shared_bytes = launch.shared_bytes;
  config.stream = launch.stream;
  config.attributes = &programmatic;
  config.attribute_count = launch.programmatic ? 1 : 0;
  const Result result = driver_.cuLaunchKernelEx(&config, function_, first, nullptr);
  if (result != kSuccess) fail(result, launch);
}

void CudaFunction::fail(Result result, const Launch& launch) const {
  const auto& [x, y, z] = launch.grid;
  throw DriverError("cuLaunchKernelEx: " + driver_.describe(result) + "; kernel " + name_ + ", grid " +
                    std::to_string(x) + "x" + std::to_string(y) + "x" + std::to_string(z) + ", block " +
                    std::to_string(launch.block) + ", dynamic shared memory " +
                    std::to_string(launch.shared_bytes) + " bytes");
}

}  // namespace autotune::launcher
