// What we use of the CUDA driver API, declared here so that building needs no CUDA toolkit. Names, numbers
// and layouts are the driver's binary interface, which NVIDIA keeps for every later driver.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace autotune::launcher {

using Result = int;
using DeviceHandle = int;
using Context = struct ContextTag*;
using Module = struct ModuleTag*;
using Function = struct FunctionTag*;
using Stream = struct StreamTag*;

enum : Result { kSuccess = 0 };

enum DeviceAttribute : int {
  kMultiprocessors = 16,
  kL2Bytes = 38,
  kMajor = 75,
  kMinor = 76,
  kSharedBytesOptIn = 97,
};

enum FunctionAttribute : int {
  kMaxThreads = 0,
  kStaticSharedBytes = 1,
  kLocalBytes = 3,
  kRegisters = 4,
  kMaxDynamicSharedBytes = 8,
};

// Of 16-bit elements, in boxes whose rows of 128 bytes are swizzled; what lies outside is read as zero.
enum TensorDataType : int { kFloat16 = 6, kBfloat16 = 9 };
enum TensorMapOption : int { kNoInterleave = 0, kSwizzle128 = 3, kPromote256 = 3, kFillZeros = 0 };

enum CaptureStatus : int { kNotCapturing = 0, kCapturing = 1 };
enum CaptureMode : int { kCaptureRelaxed = 2 };

// CUtensorMap: a tensor and its boxes, in words that only the driver and the copy engine read.
struct alignas(64) TensorMap {
  std::uint64_t words[16];
};

// CUlaunchAttribute: an id, padded to 8 bytes, and a union of 64 bytes.
struct LaunchAttribute {
  static constexpr int kProgrammaticSerialization = 6;
  alignas(8) int id;
  union {
    int allowed;
    std::uint64_t size_and_alignment[8];
  } value;
};
static_assert(sizeof(LaunchAttribute) == 72 && offsetof(LaunchAttribute, value) == 8);

// CUlaunchConfig.
struct LaunchConfig {
  unsigned grid[3];
  unsigned block[3];
  unsigned shared_bytes;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};
static_assert(sizeof(LaunchConfig) == 56 && offsetof(LaunchConfig, stream) == 32 &&
              offsetof(LaunchConfig, attribute_count) == 48);

// A failed driver call. Python sees it as autotune.values.errors.LaunchError.
struct DriverError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct DeviceInfo {
  std::string name;
  std::string uuid;  // as NVML writes it: GPU-, then 32 hex digits in five parts
  int major;
  int minor;
  int multiprocessors;
  int l2_bytes;
  int shared_bytes;  // the most that one block can have
  std::size_t memory_bytes;
};

// The driver's functions and devices. `unavailable` says in a phrase why there are no devices, and is empty
// when there are; the functions may be called only then.
struct Driver {
  Result (*cuDriverGetVersion)(int* version) = nullptr;
  Result (*cuInit)(unsigned flags) = nullptr;
  Result (*cuGetErrorName)(Result error, const char** name) = nullptr;
  Result (*cuGetErrorString)(Result error, const char** text) = nullptr;
  Result (*cuDeviceGetCount)(int* count) = nullptr;
  Result (*cuDeviceGet)(DeviceHandle* device, int index) = nullptr;
  Result (*cuDeviceGetName)(char* name, int length, DeviceHandle device) = nullptr;
  Result (*cuDeviceGetUuid)(unsigned char* uuid, DeviceHandle device) = nullptr;
  Result (*cuDeviceGetAttribute)(int* value, DeviceAttribute attribute, DeviceHandle device) = nullptr;
  Result (*cuDeviceTotalMem)(std::size_t* bytes, DeviceHandle device) = nullptr;
  Result (*cuDevicePrimaryCtxRetain)(Context* context, DeviceHandle device) = nullptr;
  Result (*cuCtxGetCurrent)(Context* context) = nullptr;
  Result (*cuCtxSetCurrent)(Context context) = nullptr;
  Result (*cuModuleLoadData)(Module* module, const void* image) = nullptr;
  Result (*cuModuleGetFunction)(Function* function, Module module, const char* name) = nullptr;
  Result (*cuFuncGetAttribute)(int* value, FunctionAttribute attribute, Function function) = nullptr;
  Result (*cuFuncSetAttribute)(Function function, FunctionAttribute attribute, int value) = nullptr;
  Result (*cuLaunchKernelEx)(const LaunchConfig* config, Function function, void** parameters,
                             void** extra) = nullptr;
  Result (*cuTensorMapEncodeTiled)(TensorMap* map, TensorDataType type, unsigned rank, void* address,
                                   const std::uint64_t* sizes, const std::uint64_t* stride_bytes,
                                   const unsigned* box, const unsigned* steps, TensorMapOption interleave,
                                   TensorMapOption swizzle, TensorMapOption promotion,
                                   TensorMapOption fill) = nullptr;
  Result (*cuStreamGetCaptureInfo)(Stream stream, CaptureStatus* status, std::uint64_t* id) = nullptr;
  Result (*cuThreadExchangeStreamCaptureMode)(CaptureMode* mode) = nullptr;

  std::string version;  // "13.0", the newest CUDA that the driver runs; empty without a driver
  std::vector<DeviceInfo> devices;
  std::string unavailable;

  // The error's name and the driver's own text for it.
  std::string describe(Result error) const;
  // Throws DriverError when `result` is an error of the named call.
  void check(Result result, const char* call) const;
};

// The driver of this process, opened by the first call.
const Driver& driver();

// The same, or DriverError with the reason when there is no device to use.
const Driver& available_driver();

}  // namespace autotune::launcher
