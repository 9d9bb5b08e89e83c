// mmdet's YOLOXHead.get_bboxes after decoding: scores and labels, then yolox_select, for a batch.
#include <limits>
#include <tuple>
#include <vector>

#include "capability.h"
#include "checks.h"
#include "sigmoid.h"
#include "yolox_select.h"

namespace yolox_ops::CPU_CAPABILITY {
namespace {

// The score and label of each prior: its largest class logit, the first of equal ones. The score is NaN,
// which no threshold admits, where the objectness alone is below the threshold, as the score then is too.
template <typename T>
void best_classes(const at::Tensor& logits, const at::Tensor& objectness, double score_threshold,
                  at::Tensor& score, at::Tensor& label) {
  const int64_t classes = logits.size(2);
  const T *all = logits.const_data_ptr<T>(), *object = objectness.const_data_ptr<T>();
  T* out = score.mutable_data_ptr<T>();
  int64_t* out_label = label.mutable_data_ptr<int64_t>();
  const T threshold = static_cast<T>(score_threshold);
  at::parallel_for(0, score.numel(), 256, [&](int64_t begin, int64_t end) {
    std::vector<T> best(end - begin, std::numeric_limits<T>::quiet_NaN());
    for (int64_t p = begin; p < end; ++p) out[p] = sigmoid(object[p]);
    for (int64_t p = begin; p < end; ++p) {
      out_label[p] = 0;
      if (!(out[p] >= threshold)) continue;
      const T* row = all + p * classes;
      T largest = row[0];
      int64_t where = 0;
      for (int64_t c = 1; c < classes; ++c) {
        if (largest != largest) break;  // a NaN is the largest, as torch.max has it
        if (!(row[c] <= largest)) largest = row[c], where = c;
      }
      best[p - begin] = largest, out_label[p] = where;
    }
    for (int64_t p = begin; p < end; ++p) out[p] *= sigmoid(best[p - begin]);
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> yolox_detect(const at::Tensor& cls_logits,
                                                            const at::Tensor& obj_logits,
                                                            const at::Tensor& boxes, double score_threshold,
                                                            double iou_threshold, int64_t max_detections) {
  check_yolox_detect(cls_logits, obj_logits, boxes, iou_threshold, max_detections);
  const int64_t batch = cls_logits.size(0), priors = cls_logits.size(1);
  const auto type = compute_type(boxes.scalar_type());
  const at::Tensor logits = cls_logits.to(type).contiguous();
  const at::Tensor objectness = obj_logits.to(type).contiguous();
  const at::Tensor packed = boxes.to(type).contiguous();
  at::Tensor scores = at::empty_like(objectness), classes = at::empty({batch, priors}, at::kLong);
  if (type == at::kDouble) {
    best_classes<double>(logits, objectness, score_threshold, scores, classes);
  } else {
    best_classes<float>(logits, objectness, score_threshold, scores, classes);
  }
  return yolox_select(scores, classes, packed, score_threshold, iou_threshold, max_detections);
}

}  // namespace yolox_ops::CPU_CAPABILITY

namespace yolox_ops {
YOLOX_OPS_REGISTER_CPU(yolox_detect)
}  // namespace yolox_ops
