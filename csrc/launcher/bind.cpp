#include "launcher/bind.h"

namespace autotune::launcher {

void bind(pybind11::module_& module) {
  module.def("cuda_devices", [] { return pybind11::list(); });
  module.def("cuda_unavailable_reason", [] { return "not built yet"; });
}

}  // namespace autotune::launcher
