#include "cpu/bind.h"

namespace autotune::cpu {

void bind(pybind11::module_& module) {
  module.def("cpu_arch", [] { return "portable"; });
}

}  // namespace autotune::cpu
