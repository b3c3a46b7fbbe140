#include "launcher/context.h"

#include <map>
#include <mutex>
#include <string>

namespace autotune::launcher {

// Retained once and for the life of the process, as torch does.
Context primary_context(const Driver& driver, int device) {
  const int devices = static_cast<int>(driver.devices.size());
  if (device < 0 || device >= devices) {
    throw DriverError("device " + std::to_string(device) + " is not one of the " + std::to_string(devices) +
                      " CUDA devices here");
  }
  static std::mutex mutex;
  static std::map<int, Context> retained;
  const std::lock_guard<std::mutex> lock(mutex);
  Context& context = retained[device];
  if (context == nullptr) {
    DeviceHandle handle = 0;
    driver.check(driver.cuDeviceGet(&handle, device), "cuDeviceGet");
    driver.check(driver.cuDevicePrimaryCtxRetain(&context, handle), "cuDevicePrimaryCtxRetain");
  }
  return context;
}

}  // namespace autotune::launcher
