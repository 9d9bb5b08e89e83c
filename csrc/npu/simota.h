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
  const int64_t batch = scores.size(0), num_priors = scores.size(1), num_classes = scores.size(2);
  const int64_t num_gts = gts.size(1);
  const at::Tensor gt = gts.permute({2, 0, 1}).contiguous().unsqueeze(3);       // [4, B, G, 1]
  const at::Tensor box = boxes.permute({2, 0, 1}).contiguous().unsqueeze(2);    // [4, B, 1, P]
  const at::Tensor center = centers.t().contiguous().view({4, 1, num_priors});  // [4, 1, P]
  const at::Tensor gt1 = gt.narrow(0, 0, 2), gt2 = gt.narrow(0, 2, 2);
  const at::Tensor box1 = box.narrow(0, 0, 2), box2 = box.narrow(0, 2, 2);

  const at::Tensor xy = center.narrow(0, 0, 2).view({2, 1, 1, 1, num_priors});
  const at::Tensor stride = center.narrow(0, 2, 2).unsqueeze(1);
  const at::Tensor gt_center = gt.view({2, 2, batch, num_gts, 1}).mean(0);
  const std::vector<int64_t> all{2, batch, num_gts, num_priors};
  const at::Tensor lower = at::stack({gt1.expand(all), at::sub(gt_center, stride, center_radius)}, 1);
  const at::Tensor upper = at::stack({gt2.expand(all), at::add(gt_center, stride, center_radius)}, 1);
  const at::Tensor within = (xy > lower).logical_and_(xy < upper);  // strict, and a NaN is outside
  out.inside = within.select(0, 0).logical_and(within.select(0, 1));

  const at::Tensor inter = intersection(box1, box2, gt1, gt2);
  out.iou = (inter / union_area(box1, box2, gt1, gt2, inter).clamp_min_(1e-6)).nan_to_num_(0);

  // Class by class [B, C, P], so that what a gt needs is a row: its root, and beside it the share of a
  // class that is not the gt's.
  const at::Tensor terms = at::empty({2, batch, num_classes, num_priors}, scores.options());
  at::Tensor roots = terms.select(0, 0), misses = terms.select(0, 1);
  at::sqrt_out(roots, scores.transpose(1, 2));
  at::neg_out(misses, roots).log1p_().clamp_min_(-100);
  const at::Tensor first = at::arange(0, batch * num_classes, num_classes, labels.options()).unsqueeze(1);
  const at::Tensor rows = labels.clamp(0, num_classes - 1).add_(first).flatten();
  const at::Tensor picked = terms.view({2, batch * num_classes, num_priors}).index_select(1, rows);
  const at::Tensor of_gt = picked.view({2, batch, num_gts, num_priors});
  const at::Tensor hit = of_gt.select(0, 0).log_().clamp_min_(-100), miss = of_gt.select(0, 1);
  at::Tensor cost = (miss - hit).sub_(misses.sum(1, /*keepdim=*/true));
  if (cls_weight != 1) cost.mul_(cls_weight);
  cost.sub_((out.iou + 1e-7).log_(), iou_weight);
  const at::Tensor both = out.inside.select(0, 0).logical_and(out.inside.select(0, 1));
  out.cost = at::where(both, cost, cost + kOutside).nan_to_num_(infinite, infinite);
  return out;
}

}  // namespace
}  // namespace yolox_ops::npu
