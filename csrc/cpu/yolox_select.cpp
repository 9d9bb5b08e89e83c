// The part of yolox_detect that accelerators leave to the host: threshold, class-wise NMS and the cut, for a
// batch.
#include "yolox_select.h"

#include "capability.h"
#include "checks.h"
#include "nms.h"

namespace yolox_ops::CPU_CAPABILITY {
namespace {

template <typename T>
void select(const at::Tensor& all_scores, const at::Tensor& all_labels, const at::Tensor& all_boxes,
            double score_threshold, double iou_threshold, at::Tensor& detections, at::Tensor& labels,
            at::Tensor& counts) {
  const int64_t batch = all_boxes.size(0), priors = all_boxes.size(1), limit = labels.size(1);
  std::vector<T> boxes, scores;
  std::vector<int64_t> classes;
  for (int64_t b = 0; b < batch; ++b) {
    const T* box = all_boxes.const_data_ptr<T>() + b * priors * 4;
    const T* score = all_scores.const_data_ptr<T>() + b * priors;
    const int64_t* label = all_labels.const_data_ptr<int64_t>() + b * priors;
    boxes.clear(), scores.clear(), classes.clear();
    for (int64_t p = 0; p < priors; ++p) {
      if (score[p] >= static_cast<T>(score_threshold)) {
        boxes.insert(boxes.end(), box + 4 * p, box + 4 * p + 4);
        scores.push_back(score[p]);
        classes.push_back(label[p]);
      }
    }
    const auto keep =
        nms(boxes.data(), scores.data(), classes.data(), static_cast<int64_t>(scores.size()), iou_threshold);
    const int64_t count = std::min(limit, static_cast<int64_t>(keep.size()));
    T* out = detections.mutable_data_ptr<T>() + b * limit * 5;
    int64_t* out_labels = labels.mutable_data_ptr<int64_t>() + b * limit;
    for (int64_t d = 0; d < count; ++d) {
      std::copy_n(boxes.data() + 4 * keep[d], 4, out + 5 * d);
      out[5 * d + 4] = scores[keep[d]];
      out_labels[d] = classes[keep[d]];
    }
    counts.mutable_data_ptr<int64_t>()[b] = count;
  }
}

}  // namespace

// scores and labels [B, P], boxes [B, P, 4], float32 or float64; numbers were checked by yolox_detect.
std::tuple<at::Tensor, at::Tensor, at::Tensor> yolox_select(const at::Tensor& scores,
                                                            const at::Tensor& labels, const at::Tensor& boxes,
                                                            double score_threshold, double iou_threshold,
                                                            int64_t max_detections) {
  TORCH_CHECK_VALUE(boxes.dim() == 3 && boxes.size(2) == 4, "boxes must be [B, P, 4], got ", boxes.sizes());
  const int64_t batch = boxes.size(0);
  check_shape(scores, "scores", {batch, boxes.size(1)});
  check_shape(labels, "labels", {batch, boxes.size(1)});
  check_int64(labels, "labels");
  TORCH_CHECK_TYPE(scores.scalar_type() == boxes.scalar_type(), "scores must have the dtype of boxes, got ",
                   scores.dtype().name(), " and ", boxes.dtype().name());
  const at::Tensor packed = boxes.contiguous(), s = scores.contiguous(), l = labels.contiguous();
  at::Tensor detections = at::zeros({batch, max_detections, 5}, packed.options());
  at::Tensor classes = at::full({batch, max_detections}, -1, l.options());
  at::Tensor counts = at::empty({batch}, l.options());
  if (packed.scalar_type() == at::kDouble) {
    select<double>(s, l, packed, score_threshold, iou_threshold, detections, classes, counts);
  } else {
    select<float>(s, l, packed, score_threshold, iou_threshold, detections, classes, counts);
  }
  return {detections, classes, counts};
}

}  // namespace yolox_ops::CPU_CAPABILITY

namespace yolox_ops {
YOLOX_OPS_REGISTER_CPU(yolox_select)
}  // namespace yolox_ops
