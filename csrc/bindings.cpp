// autotune._C: host code only. The CUDA driver is opened at run time, so the module loads without it.
#include <pybind11/pybind11.h>

#include "cpu/bind.h"
#include "launcher/bind.h"

PYBIND11_MODULE(_C, module) {
  autotune::cpu::bind(module);
  autotune::launcher::bind(module);
}
