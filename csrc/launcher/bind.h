#pragma once

#include <pybind11/pybind11.h>

namespace autotune::launcher {

void bind(pybind11::module_& module);

}  // namespace autotune::launcher
