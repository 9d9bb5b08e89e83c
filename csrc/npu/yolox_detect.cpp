// mmdet's YOLOXHead.get_bboxes after decoding: scores on the device, one copy to the host, selection there,
// one copy back. Exact, whatever number of boxes passes the threshold.
#include <tuple>

#include "checks.h"
#include "register.h"

namespace yolox_ops::npu {

std::tuple<at::Tensor, at::Tensor, at::Tensor> yolox_detect(const at::Tensor& cls_logits,
                                                            const at::Tensor& obj_logits,
                                                            const at::Tensor& boxes, double score_threshold,
                                                            double iou_threshold, int64_t max_detections) {
  check_yolox_detect(cls_logits, obj_logits, boxes, iou_threshold, max_detections);
  const auto type = compute_type(boxes.scalar_type());
  const auto [best, label] = cls_logits.to(type).max(-1);
  const at::Tensor score = best.sigmoid() * obj_logits.to(type).sigmoid();
  // A class number is exact in float32 up to 2^24. Between that and int64, a 910A casts on its AI CPU.
  const at::Tensor number = label.to(at::kInt).to(type);
  const at::Tensor packed = at::cat({boxes.to(type), score.unsqueeze(-1), number.unsqueeze(-1)}, -1).cpu();
  using Signature = std::tuple<at::Tensor, at::Tensor, at::Tensor>(
      const at::Tensor&, const at::Tensor&, const at::Tensor&, double, double, int64_t);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("yolox_ops::yolox_select", "").typed<Signature>();
  const auto [detections, labels, counts] =
      op.call(packed.select(-1, 4), packed.select(-1, 5).to(at::kLong), packed.narrow(-1, 0, 4),
              score_threshold, iou_threshold, max_detections);
  const at::Tensor back = at::cat({detections, labels.to(type).unsqueeze(-1)}, -1).to(boxes.device());
  return {back.narrow(-1, 0, 5).contiguous(), back.select(-1, 5).to(at::kInt).to(at::kLong), counts};
}

}  // namespace yolox_ops::npu

namespace yolox_ops {
YOLOX_OPS_REGISTER_NPU(yolox_detect)
}  // namespace yolox_ops
