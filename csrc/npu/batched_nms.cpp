// torchvision's batched_nms, on the host: how many boxes are kept is for the host to know anyway.
#include "checks.h"
#include "register.h"

namespace yolox_ops::npu {

at::Tensor batched_nms(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& labels,
                       double iou_threshold) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, double);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("yolox_ops::batched_nms", "").typed<Signature>();
  return op.call(boxes.cpu(), scores.cpu(), labels.cpu(), iou_threshold).to(boxes.device());
}

}  // namespace yolox_ops::npu

namespace yolox_ops {
YOLOX_OPS_REGISTER_NPU(batched_nms)
}  // namespace yolox_ops
