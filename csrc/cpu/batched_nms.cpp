// torchvision's batched_nms, by class id instead of by shifted coordinates.
#include "capability.h"
#include "checks.h"
#include "nms.h"

namespace yolox_ops::CPU_CAPABILITY {

at::Tensor batched_nms(const at::Tensor& boxes, const at::Tensor& scores, const at::Tensor& labels,
                       double iou_threshold) {
  check_boxes(boxes, "boxes", "N");
  check_floating(boxes, "boxes");
  check_floating(scores, "scores");
  check_int64(labels, "labels");
  const int64_t n = boxes.size(0);
  check_shape(scores, "scores", {n});
  check_shape(labels, "labels", {n});
  check_fraction(iou_threshold, "iou_threshold");
  TORCH_CHECK_VALUE(n < (int64_t(1) << 31), "boxes must be fewer than 2^31, got ", n);
  const bool wide = boxes.scalar_type() == at::kDouble || scores.scalar_type() == at::kDouble;
  const auto type = wide ? at::kDouble : at::kFloat;
  const at::Tensor b = boxes.to(type).contiguous(), s = scores.to(type).contiguous(), l = labels.contiguous();
  const int64_t* classes = l.const_data_ptr<int64_t>();
  const std::vector<int64_t> keep =
      wide ? nms(b.const_data_ptr<double>(), s.const_data_ptr<double>(), classes, n, iou_threshold)
           : nms(b.const_data_ptr<float>(), s.const_data_ptr<float>(), classes, n, iou_threshold);
  at::Tensor out = at::empty({static_cast<int64_t>(keep.size())}, l.options());
  std::copy(keep.begin(), keep.end(), out.mutable_data_ptr<int64_t>());
  return out;
}

}  // namespace yolox_ops::CPU_CAPABILITY

namespace yolox_ops {
YOLOX_OPS_REGISTER_CPU(batched_nms)
}  // namespace yolox_ops
