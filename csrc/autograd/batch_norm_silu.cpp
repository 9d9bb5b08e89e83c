// batch_norm_silu under autograd.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <tuple>

#include "checks.h"

namespace yolox_ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

Result call(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
            const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
            double momentum, double eps) {
  using Signature = Result(const at::Tensor&, const OptionalTensor&, const OptionalTensor&,
                           const OptionalTensor&, const OptionalTensor&, bool, double, double);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("yolox_ops::batch_norm_silu", "").typed<Signature>();
  return op.call(input, weight, bias, running_mean, running_var, training, momentum, eps);
}

at::Tensor or_undefined(const OptionalTensor& tensor) { return tensor ? *tensor : at::Tensor(); }

OptionalTensor or_none(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : OptionalTensor();
}

// Its gradients where they are to be differentiated again: through torch's own operators.
Result differentiable_gradients(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                                const at::Tensor& bias, const at::Tensor& mean, const at::Tensor& invstd,
                                bool training, double eps) {
  at::Tensor norm;
  if (training) {
    norm = at::batch_norm(input, weight, bias, {}, {}, true, 0, eps, false);
  } else {
    const auto of_channels = [](const at::Tensor& tensor) { return tensor.view({1, -1, 1, 1}); };
    norm = (input - of_channels(mean)) * of_channels(invstd);
    if (weight.defined()) norm = norm * of_channels(weight);
    if (bias.defined()) norm = norm + of_channels(bias);
    norm = norm.to(input.scalar_type());
  }
  variable_list wanted;
  for (const at::Tensor& tensor : {input, weight, bias}) {
    if (tensor.defined() && tensor.requires_grad()) wanted.push_back(tensor);
  }
  variable_list found = torch::autograd::grad({at::silu(norm)}, wanted, {grad}, true, true);
  const auto next = [&](const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.requires_grad()) return at::Tensor();
    const at::Tensor gradient = found.front();
    found.erase(found.begin());
    return gradient;
  };
  at::Tensor of_input = next(input), of_weight = next(weight), of_bias = next(bias);
  return {of_input, of_weight, of_bias};
}

class BatchNormSilu : public torch::autograd::Function<BatchNormSilu> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& input,
                               const OptionalTensor& weight, const OptionalTensor& bias,
                               const OptionalTensor& running_mean, const OptionalTensor& running_var,
                               bool training, double momentum, double eps) {
    at::AutoDispatchBelowAutograd guard;
    const auto [output, mean, invstd] =
        call(input, weight, bias, running_mean, running_var, training, momentum, eps);
    context->mark_non_differentiable({mean, invstd});
    context->set_materialize_grads(false);  // those of mean and invstd, which nobody reads
    context->save_for_backward({input, or_undefined(weight), or_undefined(bias), mean, invstd});
    context->saved_data["training"] = training;
    context->saved_data["eps"] = eps;
    return {output, mean, invstd};
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    using Signature = Result(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                             const OptionalTensor&, const at::Tensor&, const at::Tensor&, bool);
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("yolox_ops::batch_norm_silu_backward", "")
                               .typed<Signature>();
    if (!grads[0].defined()) return variable_list(8);
    const auto saved = context->get_saved_variables();
    const at::Tensor &input = saved[0], &weight = saved[1], &bias = saved[2], none;
    const bool training = context->saved_data["training"].toBool();
    const auto [of_input, of_weight, of_bias] =
        at::GradMode::is_enabled()
            ? differentiable_gradients(grads[0], input, weight, bias, saved[3], saved[4], training,
                                       context->saved_data["eps"].toDouble())
            : op.call(grads[0], input, or_none(weight), or_none(bias), saved[3], saved[4], training);
    return {of_input,
            weight.defined() ? of_weight : none,
            bias.defined() ? of_bias : none,
            none,
            none,
            none,
            none,
            none};
  }
};

Result autograd(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                double momentum, double eps) {
  const variable_list results =
      BatchNormSilu::apply(input, weight, bias, running_mean, running_var, training, momentum, eps);
  return {results[0], results[1], results[2]};
}

// A graph that saved running statistics finds out that they were changed.
Result changes_statistics(const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& running_mean, const OptionalTensor& running_var,
                          bool training, double momentum, double eps) {
  if (training) {
    for (const OptionalTensor& running : {running_mean, running_var}) {
      if (running) running->unsafeGetTensorImpl()->bump_version();
    }
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return call(input, weight, bias, running_mean, running_var, training, momentum, eps);
}

}  // namespace

TORCH_LIBRARY_IMPL(yolox_ops, Autograd, m) {
  m.impl("batch_norm_silu", &autograd);
  // Of this operator itself a derivative is an error, not None.
  m.impl("batch_norm_silu_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(yolox_ops, ADInplaceOrView, m) { m.impl("batch_norm_silu", &changes_statistics); }

}  // namespace yolox_ops
