// SimOTA for a batch: masks over [B, G, P], no wait, and shapes that depend on no result.
#include <algorithm>
#include <limits>
#include <tuple>

#include "simota.h"
#include "topk.h"

namespace yolox_ops::npu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kDear = 1e30F;  // a candidate whose cost is infinite is still one

// For each row [B, G, P] the `count` rounded down least values that are finite, equal ones from the lowest
// index on: `values`, the least, sorted, tell the last of them and leave open which of equal ones it is.
at::Tensor least(const at::Tensor& cost, const at::Tensor& values, const at::Tensor& count) {
  // Through int32: from float32 to int64, a 910A casts on its AI CPU.
  const at::Tensor last = values.gather(-1, (count - 1).to(at::kInt).to(at::kLong)).clamp_max_(kDear);
  const at::Tensor below = cost < last, equal = cost == last;
  const at::Tensor room = count - below.sum(-1, /*keepdim=*/true, at::kFloat);
  return (equal.cumsum(-1, at::kFloat) <= room).logical_and_(equal).logical_or_(below);
}

// Gives each gt that has no prior the cheapest free one in its own box or centre region. Each choice takes a
// prior from the gts behind, so they choose one after the other: some launches for every gt.
void keep_every(const Costs& costs, const at::Tensor& own, at::Tensor& gt_index, at::Tensor& iou) {
  const at::Tensor places = at::arange(own.size(2), gt_index.options());
  for (int64_t g = 0; g < own.size(1); ++g) {
    const at::Tensor free = own.select(1, g) & (gt_index < 0);
    const at::Tensor needy = free.any(-1, true) & (gt_index == g).any(-1, true).logical_not();
    const at::Tensor cost = costs.cost.select(1, g).masked_fill(free.logical_not(), kInfinity);
    const at::Tensor pick = needy & (places == cost.argmin(-1, true));
    gt_index = at::where(pick, at::full({}, g, gt_index.options()), gt_index);
    iou = at::where(pick, costs.iou.select(1, g), iou);
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> simota_assign(const at::Tensor& scores, const at::Tensor& centers,
                                                 const at::Tensor& boxes, const at::Tensor& gt_boxes,
                                                 const at::Tensor& gt_labels, const at::Tensor& num_gts,
                                                 double center_radius, int64_t candidate_topk,
                                                 double cls_weight, double iou_weight, bool keep_every_gt) {
  check_simota_assign(scores, centers, boxes, gt_boxes, gt_labels, num_gts, candidate_topk, cls_weight,
                      iou_weight);
  const int64_t batch = scores.size(0), num_priors = scores.size(1), padded = gt_boxes.size(1);
  const auto floats = scores.options().dtype(at::kFloat);
  if (!batch || !num_priors || !padded) {
    return {at::full({batch, num_priors}, -1, gt_labels.options()), at::zeros({batch, num_priors}, floats)};
  }
  const Costs costs = simota_costs(as_float(scores), as_float(centers), as_float(boxes), as_float(gt_boxes),
                                   gt_labels, center_radius, cls_weight, iou_weight, kDear);
  const at::Tensor valid = (at::arange(padded, num_gts.options()) < num_gts.unsqueeze(1)).unsqueeze(2);
  const at::Tensor own = costs.inside.select(0, 0).logical_or(costs.inside.select(0, 1)).logical_and_(valid);
  const at::Tensor allowed = own.any(1, /*keepdim=*/true) & valid;  // candidates of any gt, for every gt
  const at::Tensor infinite = at::full({}, kInfinity, floats);

  const int64_t most = std::min(candidate_topk, num_priors);
  const at::Tensor cost = at::where(allowed, costs.cost, infinite);
  const auto [overlaps, cheapest] = best(costs.iou * allowed, cost, most);
  const at::Tensor k = overlaps.sum(-1, /*keepdim=*/true).clamp_(1, static_cast<double>(most));
  const at::Tensor chosen = least(cost, cheapest, k);

  const at::Tensor takers = chosen.sum(1, /*keepdim=*/true, at::kFloat);
  // All gts where contested; the cost of those that are not allowed is infinite already.
  const at::Tensor eligible = chosen.logical_or(takers > 1);
  const at::Tensor owner = at::where(eligible, cost, infinite).argmin(1, /*keepdim=*/true);
  const at::Tensor background = takers.squeeze(1) == 0;
  at::Tensor iou = costs.iou.gather(1, owner).squeeze(1).masked_fill_(background, 0);
  at::Tensor gt_index = at::where(background, at::full({}, -1, owner.options()), owner.squeeze(1));
  if (keep_every_gt) keep_every(costs, own, gt_index, iou);
  return {gt_index, iou};
}

}  // namespace yolox_ops::npu

namespace yolox_ops {
YOLOX_OPS_REGISTER_NPU(simota_assign)
}  // namespace yolox_ops
