// ema_update_ under autograd: a graph that saved an average finds out that it was changed, as it does after
// torch's own in-place operators.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace yolox_ops {
namespace {

void ema_update_(at::TensorList average, at::TensorList value, double momentum) {
  using Signature = void(at::TensorList, at::TensorList, double);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("yolox_ops::ema_update_", "").typed<Signature>();
  // First, as it refuses inference tensors outside of inference mode, before anything is changed.
  for (const at::Tensor& tensor : average) tensor.unsafeGetTensorImpl()->bump_version();
  at::AutoDispatchBelowADInplaceOrView guard;
  op.call(average, value, momentum);
}

}  // namespace

TORCH_LIBRARY_IMPL(yolox_ops, ADInplaceOrView, m) { m.impl("ema_update_", &ema_update_); }

}  // namespace yolox_ops
