#pragma once

#include "launcher/driver.h"

namespace autotune::launcher {

// The device's primary context, which torch uses too. Throws DriverError where there is no such device.
Context primary_context(const Driver& driver, int device);

// Makes a context current on this thread, and what was current before it again at the end.
class CurrentContext {
 public:
  CurrentContext(const Driver& driver, Context context) : driver_(driver) {
    driver_.check(driver_.cuCtxGetCurrent(&previous_), "cuCtxGetCurrent");
    changed_ = previous_ != context;
    if (changed_) driver_.check(driver_.cuCtxSetCurrent(context), "cuCtxSetCurrent");
  }
  ~CurrentContext() {
    if (changed_) driver_.cuCtxSetCurrent(previous_);
  }
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;

 private:
  const Driver& driver_;
  Context previous_ = nullptr;
  bool changed_ = false;
};

}  // namespace autotune::launcher
