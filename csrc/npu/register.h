// The kernels in this folder are those of NPU and of CUDA: each is registered for PrivateUse1, which is the
// NPU once torch_npu is imported, and for CUDA as well. They are written in ATen calls of static shapes and
// wait for nothing, so that they serve any accelerator, and need the headers of neither. An input is checked
// as far as the host knows it: shapes, dtypes and numbers, not a tensor's content.
#pragma once
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#define YOLOX_OPS_REGISTER_NPU(op)                                         \
  TORCH_LIBRARY_IMPL(yolox_ops, PrivateUse1, m) { m.impl(#op, &npu::op); } \
  TORCH_LIBRARY_IMPL(yolox_ops, CUDA, m) { m.impl(#op, &npu::op); }
