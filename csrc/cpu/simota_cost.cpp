// The SimOTA cost and IoU matrices of one image.
#include <algorithm>
#include <tuple>
#include <vector>

#include "capability.h"
#include "checks.h"
#include "simota.h"

namespace yolox_ops::CPU_CAPABILITY {

std::tuple<at::Tensor, at::Tensor> simota_cost(const at::Tensor& scores, const at::Tensor& centers,
                                               const at::Tensor& boxes, const at::Tensor& gt_boxes,
                                               const at::Tensor& gt_labels, double center_radius,
                                               double cls_weight, double iou_weight) {
  check_simota_cost(scores, centers, boxes, gt_boxes, gt_labels, cls_weight, iou_weight);
  const int64_t num_priors = scores.size(0), classes = scores.size(1), num_gts = gt_boxes.size(0);
  const at::Tensor s = as_float(scores), p = as_float(centers), b = as_float(boxes), g = as_float(gt_boxes);
  const at::Tensor labels = gt_labels.contiguous();
  const int64_t* label = labels.const_data_ptr<int64_t>();
  check_labels(label, num_gts, classes, "gt_labels");
  at::Tensor cost = at::empty({num_priors, num_gts}, s.options()), iou = at::empty_like(cost);
  const float *score = s.const_data_ptr<float>(), *center = p.const_data_ptr<float>(),
              *box = b.const_data_ptr<float>();
  const float* gt = g.const_data_ptr<float>();
  float *out_cost = cost.mutable_data_ptr<float>(), *out_iou = iou.mutable_data_ptr<float>();
  const float radius = static_cast<float>(center_radius);
  const Weights weights{static_cast<float>(cls_weight), static_cast<float>(iou_weight)};
  std::vector<Gt> targets;
  for (int64_t j = 0; j < num_gts; ++j) targets.emplace_back(gt + 4 * j);
  at::parallel_for(0, num_gts ? num_priors : 0, 64, [&](int64_t begin, int64_t end) {
    // One prior's row of gts, padded to whole lanes.
    const int64_t padded = (num_gts + kLanes - 1) / kLanes * kLanes;
    std::vector<float> hit(padded), overlap(padded), outside(padded), row(padded);
    for (int64_t i = begin; i < end; ++i) {
      const Lanes sum = Lanes{} + miss_sum(score + i * classes, classes);
      const float* q = center + 4 * i;
      const Prior prior{q[0], q[1], radius * q[2], radius * q[3]};
      const float* d = box + 4 * i;
      const float area = (d[2] - d[0]) * (d[3] - d[1]);
      for (int64_t j = 0; j < num_gts; ++j) {
        const Gt& target = targets[j];
        hit[j] = score[i * classes + label[j]];
        overlap[j] = iou_of(d[0], d[1], d[2], d[3], area, target);
        outside[j] = in_box(prior, target) & in_center(prior, target) ? 0.0F : kOutside;
      }
      for (int64_t j = 0; j < padded; j += kLanes) {
        const Lanes value = cost_of(sum, load(&hit[j]), load(&overlap[j]), load(&outside[j]), weights);
        std::memcpy(&row[j], &value, sizeof value);
      }
      std::copy_n(row.data(), num_gts, out_cost + i * num_gts);
      std::copy_n(overlap.data(), num_gts, out_iou + i * num_gts);
    }
  });
  return {cost, iou};
}

}  // namespace yolox_ops::CPU_CAPABILITY

namespace yolox_ops {
YOLOX_OPS_REGISTER_CPU(simota_cost)
}  // namespace yolox_ops
