#include "cpu/arch.h"

#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace autotune::cpu {
namespace {

struct Level {
  std::string name;
  bool supported;
  const Kernels* kernels;
  const Kernels* bf16_kernels;
};

// Best first.
std::vector<Level> levels() {
  std::vector<Level> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  found.push_back({"x86_64_avx512_bf16", bf16, &kAvx512, &kAvx512Bf16});
  found.push_back({"x86_64_avx512", avx512, &kAvx512, &kAvx512});
  found.push_back({"x86_64_avx2", avx2, &kAvx2, &kAvx2});
#endif
  found.push_back({"portable", true, &kPortable, &kPortable});
  return found;
}

Level choose() {
  const char* wanted = std::getenv("AUTOTUNE_CPU_ARCH");
  const bool given = wanted != nullptr && *wanted != '\0';
  std::string usable;
  for (const Level& level : levels()) {
    if (!level.supported) continue;
    if (!given || level.name == wanted) return level;
    usable += (usable.empty() ? "" : ", ") + level.name;
  }
  throw std::invalid_argument("AUTOTUNE_CPU_ARCH=" + std::string(wanted) + " is not one of " + usable +
                              ", which this CPU can run");
}

const Level& chosen() {
  static const Level level = choose();
  return level;
}

}  // namespace

const std::string& arch() { return chosen().name; }

const Kernels& kernels(Dtype dtype) {
  return dtype == Dtype::kBf16 ? *chosen().bf16_kernels : *chosen().kernels;
}

}  // namespace autotune::cpu
