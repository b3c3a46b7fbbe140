#include "launcher/driver.h"

#include <dlfcn.h>

#include <type_traits>
#include <utility>

namespace autotune::launcher {

namespace {

// The first symbol that the library lacks, or null. A suffix names the version of the call that we declare;
// cuStreamGetCaptureInfo without one has had three parameters in every driver.
const char* find_all(void* library, Driver& driver) {
  const char* missing = nullptr;
  auto find = [library](const char* symbol, auto& function) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, symbol));
    return function != nullptr;
  };
  auto need = [&](const char* symbol, auto& function) {
    if (!find(symbol, function) && missing == nullptr) missing = symbol;
  };
  need("cuDriverGetVersion", driver.cuDriverGetVersion);
  need("cuInit", driver.cuInit);
  need("cuGetErrorName", driver.cuGetErrorName);
  need("cuGetErrorString", driver.cuGetErrorString);
  need("cuDeviceGetCount", driver.cuDeviceGetCount);
  need("cuDeviceGet", driver.cuDeviceGet);
  need("cuDeviceGetName", driver.cuDeviceGetName);
  need("cuDeviceGetUuid_v2", driver.cuDeviceGetUuid);
  need("cuDeviceGetAttribute", driver.cuDeviceGetAttribute);
  need("cuDeviceTotalMem_v2", driver.cuDeviceTotalMem);
  need("cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain);
  need("cuCtxGetCurrent", driver.cuCtxGetCurrent);
  need("cuCtxSetCurrent", driver.cuCtxSetCurrent);
  need("cuModuleLoadData", driver.cuModuleLoadData);
  need("cuModuleGetFunction", driver.cuModuleGetFunction);
  need("cuFuncGetAttribute", driver.cuFuncGetAttribute);
  need("cuFuncSetAttribute", driver.cuFuncSetAttribute);
  need("cuLaunchKernelEx", driver.cuLaunchKernelEx);
  need("cuTensorMapEncodeTiled", driver.cuTensorMapEncodeTiled);
  need("cuStreamGetCaptureInfo", driver.cuStreamGetCaptureInfo);
  need("cuThreadExchangeStreamCaptureMode", driver.cuThreadExchangeStreamCaptureMode);
  return missing;
}

std::string uuid_text(const unsigned char (&bytes)[16]) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text = "GPU-";
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += kDigits[bytes[i] / 16];
    text += kDigits[bytes[i] % 16];
  }
  return text;
}

DeviceInfo device_info(const Driver& driver, int index) {
  DeviceHandle device = 0;
  driver.check(driver.cuDeviceGet(&device, index), "cuDeviceGet");
  char name[256] = "";
  driver.check(driver.cuDeviceGetName(name, sizeof(name), device), "cuDeviceGetName");
  unsigned char uuid[16] = {};
  driver.check(driver.cuDeviceGetUuid(uuid, device), "cuDeviceGetUuid");
  std::size_t memory_bytes = 0;
  driver.check(driver.cuDeviceTotalMem(&memory_bytes, device), "cuDeviceTotalMem");
  auto attribute = [&](DeviceAttribute wanted) {
    int value = 0;
    driver.check(driver.cuDeviceGetAttribute(&value, wanted, device), "cuDeviceGetAttribute");
    return value;
  };
  return {name,
          uuid_text(uuid),
          attribute(kMajor),
          attribute(kMinor),
          attribute(kMultiprocessors),
          attribute(kL2Bytes),
          attribute(kSharedBytesOptIn),
          memory_bytes};
}

void find_devices(Driver& driver) {
  int version = 0;
  driver.check(driver.cuDriverGetVersion(&version), "cuDriverGetVersion");
  driver.version = std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  driver.check(driver.cuInit(0), "cuInit");
  int count = 0;
  driver.check(driver.cuDeviceGetCount(&count), "cuDeviceGetCount");
  if (count == 0) throw DriverError("the driver shows no device");
  std::vector<DeviceInfo> devices;
  for (int index = 0; index < count; ++index) devices.push_back(device_info(driver, index));
  driver.devices = std::move(devices);
}

Driver open_driver() {
  Driver opened;
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    opened.unavailable = "libcuda.so.1 not found: no NVIDIA driver";
  } else if (const char* missing = find_all(library, opened)) {
    opened.unavailable = "libcuda.so.1 has no " + std::string(missing) + ": its driver is older than CUDA 12";
  } else {
    try {
      find_devices(opened);
    } catch (const DriverError& error) {
      opened.unavailable = error.what();
    }
  }
  return opened;
}

}  // namespace

std::string Driver::describe(Result error) const {
  const char* name = nullptr;
  const char* text = nullptr;
  if (cuGetErrorName(error, &name) != kSuccess || name == nullptr) name = "unknown error";
  if (cuGetErrorString(error, &text) != kSuccess || text == nullptr) text = "no description";
  return std::string(name) + " " + std::to_string(error) + " (" + text + ")";
}

void Driver::check(Result result, const char* call) const {
  if (result != kSuccess) throw DriverError(std::string(call) + ": " + describe(result));
}

const Driver& driver() {
  static const Driver opened = open_driver();
  return opened;
}

const Driver& available_driver() {
  const Driver& opened = driver();
  if (!opened.unavailable.empty()) throw DriverError("no CUDA device: " + opened.unavailable);
  return opened;
}

}  // namespace autotune::launcher
