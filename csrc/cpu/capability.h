// Each file in this folder but capability.cpp is compiled once per instruction set, into the namespace that
// CPU_CAPABILITY names. The baseline compilation alone registers the operator, so that loading the library
// runs baseline code only; it picks the function to register by what the CPU can do (or by
// YOLOX_OPS_CPU_CAPABILITY).
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <string>

namespace yolox_ops {

enum class Capability { kDefault, kAvx2, kAvx512 };
Capability cpu_capability();
std::string cpu_capability_name();

}  // namespace yolox_ops

#if !defined(CPU_CAPABILITY_DEFAULT)
#define YOLOX_OPS_REGISTER_CPU(op)
#elif defined(YOLOX_OPS_HAS_AVX)
#define YOLOX_OPS_REGISTER_CPU(op)                                  \
  namespace avx2 {                                                  \
  decltype(default_::op) op;                                        \
  }                                                                 \
  namespace avx512 {                                                \
  decltype(default_::op) op;                                        \
  }                                                                 \
  TORCH_LIBRARY_IMPL(yolox_ops, CPU, m) {                           \
    const auto capability = cpu_capability();                       \
    m.impl(#op, capability == Capability::kAvx512 ? &avx512::op     \
                : capability == Capability::kAvx2 ? &avx2::op       \
                                                  : &default_::op); \
  }
#else
#define YOLOX_OPS_REGISTER_CPU(op) \
  TORCH_LIBRARY_IMPL(yolox_ops, CPU, m) { m.impl(#op, &default_::op); }
#endif
