#pragma once

#include <string>

#include "cpu/tile.h"

namespace autotune::cpu {

// x86_64_avx512_bf16, x86_64_avx512, x86_64_avx2 or portable: the best that this CPU has, or what the
// environment variable AUTOTUNE_CPU_ARCH lowers it to. Throws std::invalid_argument, naming the value, when
// the variable is unknown or beyond this CPU. Read once, at the first call that succeeds.
const std::string& arch();

// The functions of that instruction set for x of the dtype.
const Kernels& kernels(Dtype dtype);

}  // namespace autotune::cpu
