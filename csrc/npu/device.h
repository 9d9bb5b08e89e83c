// The kernels in this folder are written in ATen calls of static shapes and wait for nothing, so that they
// serve any accelerator: they are registered for PrivateUse1, which is the NPU once torch_npu is imported,
// and for CUDA. They need neither's headers. An input is checked as far as the host knows it: shapes, dtypes
// and numbers, not a tensor's content.
#pragma once
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#define YOLOX_OPS_REGISTER_DEVICE(op)                                         \
  TORCH_LIBRARY_IMPL(yolox_ops, PrivateUse1, m) { m.impl(#op, &device::op); } \
  TORCH_LIBRARY_IMPL(yolox_ops, CUDA, m) { m.impl(#op, &device::op); }
