// The choice of instruction set. Compiled once, for the baseline: it runs before the CPU is known.
#include "capability.h"

#include <cstdlib>

namespace yolox_ops {
namespace {

Capability detect() {
  Capability best = Capability::kDefault;
#if defined(YOLOX_OPS_HAS_AVX)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    best = Capability::kAvx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
      best = Capability::kAvx512;
    }
  }
#endif
  // yolox_ops/_library.py refuses other values, and one that this CPU cannot satisfy: here, while the library
  // loads, nobody could catch an exception.
  const char* variable = std::getenv("YOLOX_OPS_CPU_CAPABILITY");
  const std::string wanted = variable ? variable : "";
  if (wanted == "default") return Capability::kDefault;
  if (wanted == "avx2" && best == Capability::kAvx512) return Capability::kAvx2;
  return best;
}

}  // namespace

Capability cpu_capability() {
  static const Capability capability = detect();
  return capability;
}

std::string cpu_capability_name() {
  switch (cpu_capability()) {
    case Capability::kAvx512:
      return "avx512";
    case Capability::kAvx2:
      return "avx2";
    default:
      return "default";
  }
}

}  // namespace yolox_ops
