#include "cpu/bind.h"

#include <pybind11/stl.h>

#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cpu/arch.h"
#include "cpu/matmul.h"
#include "cpu/pool.h"

namespace autotune::cpu {
namespace {

const void* pointer(uintptr_t address) { return reinterpret_cast<const void*>(address); }

void call(int64_t n, int64_t k, int64_t group_size, int dtype, int split_k, int tile_n, int unpack_m,
          int threads, int64_t m, uintptr_t x, uintptr_t qweight, uintptr_t scales, uintptr_t zeros,
          uintptr_t bias, uintptr_t out) {
  // A wrong tensor is the caller's error to report; these would make the loops run away.
  if (m < 1 || n < 8 || n % 8 || k < 8 || group_size < 8 || group_size % 8 || k % group_size || dtype < 0 ||
      dtype > 2 || split_k < 1 || split_k > k / group_size || tile_n < 1 || tile_n % kBlockRows ||
      unpack_m < 0 || threads < 1) {
    throw std::invalid_argument("cpu_matmul: numbers that do not fit together");
  }
  matmul({m, n, k, group_size, static_cast<Dtype>(dtype), pointer(x), pointer(qweight), pointer(scales),
          pointer(zeros), pointer(bias), reinterpret_cast<void*>(out), split_k, tile_n, unpack_m, threads});
}

void pin(std::vector<int> cpus) {
  constexpr int kMostCpus = 1024;  // of a cpu_set_t
  for (const int cpu : cpus)
    if (cpu < 0 || cpu >= kMostCpus) throw std::invalid_argument("cpu_pin: there is no such CPU");
  Pool& pool = Pool::instance();
  const std::lock_guard<std::mutex> lock(pool.mutex());
  pool.pin(std::move(cpus));
}

const std::string& checked_arch() {
  try {
    return arch();
  } catch (const std::invalid_argument& error) {
    const auto type = pybind11::module_::import("autotune.values.errors").attr("DeviceError");
    pybind11::set_error(type, error.what());
    throw pybind11::error_already_set();
  }
}

}  // namespace

void bind(pybind11::module_& module) {
  module.def("cpu_arch", &checked_arch);
  module.def("cpu_pin", &pin, pybind11::call_guard<pybind11::gil_scoped_release>());
  module.def("cpu_source_hash", [] { return AUTOTUNE_CPU_SOURCE_HASH; });
  module.def("cpu_matmul", &call, pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace autotune::cpu
