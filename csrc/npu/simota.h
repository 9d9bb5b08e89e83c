// The cost of giving a prior to a gt, mmdet's SimOTAAssigner, for a batch: shared by simota_cost and
// simota_assign. The algebra is that of csrc/cpu/simota.h: the sum over classes is taken once a prior.
#pragma once
#include <vector>

#include "checks.h"
#include "overlap.h"
#include "register.h"

namespace yolox_ops::npu {
namespace {

constexpr double kOutside = 100000.0;

struct Costs {
  at::Tensor cost, iou;  // [B, G, P] float32
  at::Tensor inside;     // [2, B, G, P]: in the box, in the centre region
};

// scores [B, P, C], centers [P, 4], boxes [B, P, 4], gts [B, G, 4], float32 and contiguous; labels [B, G].
// A label outside [0, C), which only a wait would reveal, is read as the nearest one. A cost that is NaN or
// infinite becomes `infinite`. Every line is a launch or two: what is computed together is stacked, and a
// temporary is changed in place.
inline Costs simota_costs(const at::Tensor& scores, const at::Tensor& centers, const at::Tensor& boxes,
                          const at::Tensor& gts, const at::Tensor& labels, double center_radius,
                          double cls_weight, double iou_weight, double infinite) {
  Costs out;
  const int64_t batch = scores.size(0), num_priors = scores.size(1), num_gts = gts.size(1);
  const at::Tensor gt = gts.unsqueeze(2), box = boxes.unsqueeze(1);  // [B, G, 1, 4] and [B, 1, P, 4]
  const at::Tensor gt1 = gt.narrow(-1, 0, 2), gt2 = gt.narrow(-1, 2, 2);
  const at::Tensor box1 = box.narrow(-1, 0, 2), box2 = box.narrow(-1, 2, 2);

  const at::Tensor xy = centers.narrow(1, 0, 2), stride = centers.narrow(1, 2, 2);
  const at::Tensor gt_center = gts.view({batch, num_gts, 2, 2}).mean(2).unsqueeze(2);
  const std::vector<int64_t> all{batch, num_gts, num_priors, 2};
  const at::Tensor lower = at::stack({gt1.expand(all), at::sub(gt_center, stride, center_radius)});
  const at::Tensor upper = at::stack({gt2.expand(all), at::add(gt_center, stride, center_radius)});
  out.inside = ((xy > lower) & (xy < upper)).all(-1);  // strict, and a NaN is outside

  const at::Tensor inter = intersection(box1, box2, gt1, gt2);
  out.iou = (inter / union_area(box1, box2, gt1, gt2, inter).clamp_min_(1e-6)).nan_to_num_(0);

  const at::Tensor root = scores.sqrt();
  const at::Tensor misses = root.neg().log1p_().clamp_min_(-100);  // of a class that is not the gt's
  const at::Tensor rows =
      labels.clamp(0, scores.size(2) - 1).unsqueeze(2).expand({batch, num_gts, num_priors});
  const at::Tensor hit = root.transpose(1, 2).gather(1, rows).log_().clamp_min_(-100);
  const at::Tensor miss = misses.transpose(1, 2).gather(1, rows);
  at::Tensor cost = (miss - hit).sub_(misses.sum(-1).unsqueeze(1));
  if (cls_weight != 1) cost.mul_(cls_weight);
  cost.sub_((out.iou + 1e-7).log_(), iou_weight);
  out.cost = at::where(out.inside.all(0), cost, cost + kOutside).nan_to_num_(infinite, infinite);
  return out;
}

}  // namespace
}  // namespace yolox_ops::npu
