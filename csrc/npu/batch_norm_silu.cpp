// torch's batch norm followed by its SiLU, and their gradient from the norm's input alone.
#include <tuple>

#include "checks.h"
#include "register.h"

namespace yolox_ops::npu {

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_silu(const at::Tensor& input,
                                                               const OptionalTensor& weight,
                                                               const OptionalTensor& bias,
                                                               const OptionalTensor& running_mean,
                                                               const OptionalTensor& running_var,
                                                               bool training, double momentum, double eps) {
  check_batch_norm_silu(input, weight, bias, running_mean, running_var, training, momentum, eps);
  auto [norm, mean, invstd] =
      at::native_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps);
  if (!training) {  // devices differ in what they return for these then
    const auto type = compute_type(input.scalar_type());
    mean = running_mean->to(type);
    invstd = (running_var->to(type) + eps).rsqrt_();
    if (mean.is_same(*running_mean)) mean = mean.clone();
  }
  return {at::silu(norm), mean, invstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_silu_backward(
    const at::Tensor& grad, const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const at::Tensor& mean, const at::Tensor& invstd, bool training) {
  check_batch_norm_silu_backward(grad, input, weight, bias, mean, invstd);
  const at::Tensor variance = invstd.pow(-2);
  const at::Tensor norm =
      std::get<0>(at::native_batch_norm(input, weight, bias, mean, variance, false, 0, 0));
  const at::Tensor grad_norm = at::silu_backward(grad, norm);
  auto [grad_input, grad_weight, grad_bias] = at::native_batch_norm_backward(
      grad_norm, input, weight, mean, variance, mean, invstd, training, 0, {true, true, true});
  const auto as = [&](const at::Tensor& gradient, const OptionalTensor& parameter) {
    return gradient.to(parameter ? parameter->scalar_type() : input.scalar_type());
  };
  return {grad_input, as(grad_weight, weight), as(grad_bias, bias)};
}

}  // namespace yolox_ops::npu

namespace yolox_ops {
YOLOX_OPS_REGISTER_NPU(batch_norm_silu)
YOLOX_OPS_REGISTER_NPU(batch_norm_silu_backward)
}  // namespace yolox_ops
