// box_iou under autograd, and under autocast: half types lose IoU differences that training needs.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>

namespace yolox_ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor call(const at::Tensor& boxes1, const at::Tensor& boxes2, c10::string_view mode, bool aligned,
                double eps) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, c10::string_view, bool, double);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("yolox_ops::box_iou", "").typed<Signature>();
  return op.call(boxes1, boxes2, mode, aligned, eps);
}

class BoxIou : public torch::autograd::Function<BoxIou> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& boxes1, const at::Tensor& boxes2,
                            const std::string& mode, bool aligned, double eps) {
    at::AutoDispatchBelowADInplaceOrView guard;
    context->save_for_backward({boxes1, boxes2});
    context->saved_data["mode"] = mode;
    context->saved_data["aligned"] = aligned;
    context->saved_data["eps"] = eps;
    return call(boxes1, boxes2, mode, aligned, eps);
  }

  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    using Signature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                         const at::Tensor&, c10::string_view, bool, double);
    static const auto op =
        c10::Dispatcher::singleton().findSchemaOrThrow("yolox_ops::box_iou_backward", "").typed<Signature>();
    const auto saved = context->get_saved_variables();
    const std::string mode = context->saved_data["mode"].toStringRef();
    auto [grad1, grad2] = op.call(grads[0], saved[0], saved[1], mode, context->saved_data["aligned"].toBool(),
                                  context->saved_data["eps"].toDouble());
    return {grad1, grad2, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

at::Tensor autograd(const at::Tensor& boxes1, const at::Tensor& boxes2, c10::string_view mode, bool aligned,
                    double eps) {
  return BoxIou::apply(boxes1, boxes2, std::string(mode), aligned, eps);
}

template <c10::DispatchKey key, c10::DeviceType device>
at::Tensor autocast(const at::Tensor& boxes1, const at::Tensor& boxes2, c10::string_view mode, bool aligned,
                    double eps) {
  c10::impl::ExcludeDispatchKeyGuard guard(key);
  return call(at::autocast::cached_cast(at::kFloat, boxes1, device),
              at::autocast::cached_cast(at::kFloat, boxes2, device), mode, aligned, eps);
}

}  // namespace

TORCH_LIBRARY_IMPL(yolox_ops, Autograd, m) {
  m.impl("box_iou", &autograd);
  // A second derivative is an error, not None.
  m.impl("box_iou_backward", torch::autograd::autogradNotImplementedFallback());
}
TORCH_LIBRARY_IMPL(yolox_ops, AutocastCPU, m) {
  m.impl("box_iou", &autocast<c10::DispatchKey::AutocastCPU, c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(yolox_ops, AutocastCUDA, m) {
  m.impl("box_iou", &autocast<c10::DispatchKey::AutocastCUDA, c10::DeviceType::CUDA>);
}
TORCH_LIBRARY_IMPL(yolox_ops, AutocastPrivateUse1, m) {
  m.impl("box_iou", &autocast<c10::DispatchKey::AutocastPrivateUse1, c10::DeviceType::PrivateUse1>);
}

}  // namespace yolox_ops
