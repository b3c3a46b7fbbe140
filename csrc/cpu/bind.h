#pragma once

#include <pybind11/pybind11.h>

namespace autotune::cpu {

void bind(pybind11::module_& module);

}  // namespace autotune::cpu
