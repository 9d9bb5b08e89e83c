// mmdet's YOLOXHead.get_bboxes after decoding: scores, threshold, class-wise NMS and the cut, for a batch.
#include <limits>
#include <tuple>

#include "capability.h"
#include "checks.h"
#include "nms.h"

namespace yolox_ops::CPU_CAPABILITY {
namespace {

// The largest class logit of each prior and its class, the first of equal ones; NaN, which no threshold
// admits, where the objectness alone is below the threshold, as the score then is too.
template <typename T>
void best_classes(const at::Tensor& logits, const at::Tensor& objectness, double score_threshold,
                  at::Tensor& best, at::Tensor& label) {
  const int64_t classes = logits.size(2);
  const T *all = logits.const_data_ptr<T>(), *object = objectness.const_data_ptr<T>();
  T* out = best.mutable_data_ptr<T>();
  int64_t* out_label = label.mutable_data_ptr<int64_t>();
  const T threshold = static_cast<T>(score_threshold);
  at::parallel_for(0, best.numel(), 256, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      out[p] = std::numeric_limits<T>::quiet_NaN();
      out_label[p] = 0;
      if (!(object[p] >= threshold)) continue;
      const T* row = all + p * classes;
      T largest = row[0];
      int64_t where = 0;
      for (int64_t c = 1; c < classes; ++c) {
        if (largest != largest) break;  // a NaN is the largest, as torch.max has it
        if (!(row[c] <= largest)) largest = row[c], where = c;
      }
      out[p] = largest, out_label[p] = where;
    }
  });
}

template <typename T>
void detect(const at::Tensor& all_scores, const at::Tensor& all_labels, const at::Tensor& all_boxes,
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

std::tuple<at::Tensor, at::Tensor, at::Tensor> yolox_detect(const at::Tensor& cls_logits,
                                                            const at::Tensor& obj_logits,
                                                            const at::Tensor& boxes, double score_threshold,
                                                            double iou_threshold, int64_t max_detections) {
  TORCH_CHECK_VALUE(cls_logits.dim() == 3 && cls_logits.size(2) > 0,
                    "cls_logits must be [B, P, C] with C > 0, got ", cls_logits.sizes());
  const int64_t batch = cls_logits.size(0), priors = cls_logits.size(1);
  check_shape(obj_logits, "obj_logits", {batch, priors});
  check_shape(boxes, "boxes", {batch, priors, 4});
  check_floating(cls_logits, "cls_logits");
  check_floating(obj_logits, "obj_logits");
  check_floating(boxes, "boxes");
  check_fraction(iou_threshold, "iou_threshold");
  TORCH_CHECK_VALUE(max_detections >= 0, "max_detections must be at least 0, got ", max_detections);
  const auto type = compute_type(boxes.scalar_type());
  const at::Tensor logits = cls_logits.to(type).contiguous();
  const at::Tensor objectness = obj_logits.to(type).contiguous().sigmoid();
  const at::Tensor packed = boxes.to(type).contiguous();
  at::Tensor scores = at::empty_like(objectness), classes = at::empty({batch, priors}, at::kLong);
  if (type == at::kDouble) {
    best_classes<double>(logits, objectness, score_threshold, scores, classes);
  } else {
    best_classes<float>(logits, objectness, score_threshold, scores, classes);
  }
  scores.sigmoid_().mul_(objectness);
  at::Tensor detections = at::zeros({batch, max_detections, 5}, packed.options());
  at::Tensor labels = at::full({batch, max_detections}, -1, packed.options().dtype(at::kLong));
  at::Tensor counts = at::empty({batch}, labels.options());
  if (type == at::kDouble) {
    detect<double>(scores, classes, packed, score_threshold, iou_threshold, detections, labels, counts);
  } else {
    detect<float>(scores, classes, packed, score_threshold, iou_threshold, detections, labels, counts);
  }
  return {detections, labels, counts};
}

}  // namespace yolox_ops::CPU_CAPABILITY

namespace yolox_ops {
YOLOX_OPS_REGISTER_CPU(yolox_detect)
}  // namespace yolox_ops
