// Box overlaps: mmdet's bbox_overlaps, and its gradient with torch's conventions at ties.
#include <ATen/ExpandUtils.h>

#include <tuple>
#include <vector>

#include "checks.h"
#include "overlap.h"
#include "register.h"
#include "ties.h"

namespace yolox_ops::npu {
namespace {

// Corners [2, ...] of boxes [N, 4] and [M, 4], broadcast against each other.
struct Pair {
  at::Tensor a1, a2, b1, b2;
  Pair(const at::Tensor& boxes1, const at::Tensor& boxes2, bool aligned) {
    const auto type = compute_type(boxes1.scalar_type());
    at::Tensor a = boxes1.to(type).t().contiguous(), b = boxes2.to(type).t().contiguous();
    if (!aligned) a = a.unsqueeze(2), b = b.unsqueeze(1);
    a1 = a.narrow(0, 0, 2), a2 = a.narrow(0, 2, 2);
    b1 = b.narrow(0, 0, 2), b2 = b.narrow(0, 2, 2);
  }
};

at::Tensor broadcast_stack(const at::Tensor& a, const at::Tensor& b) {
  const std::vector<int64_t> shape = at::infer_size(a.sizes(), b.sizes());
  return at::stack({a.expand(shape), b.expand(shape)});
}

at::Tensor swapped(const at::Tensor& sides) { return sides.flip(0); }

// How much of the gradient of max(a, b) is a's: half where they are equal, as torch.maximum has it. `b` is a
// tensor or a number.
template <typename T>
at::Tensor share_of_larger(const at::Tensor& a, const T& b) {
  return at::add((a > b).to(a.scalar_type()), (a == b).to(a.scalar_type()), 0.5);
}

// `grad`, which nobody else needs, where clamping at 0 lets it through. A NaN is let through by nothing.
at::Tensor through_clamp(at::Tensor grad, const at::Tensor& value) {
  return grad.masked_fill_((kThroughClampAtZero ? value >= 0 : value > 0).logical_not_(), 0);
}

}  // namespace

at::Tensor box_iou(const at::Tensor& boxes1, const at::Tensor& boxes2, c10::string_view mode, bool aligned,
                   double eps) {
  check_box_iou(boxes1, boxes2, mode, aligned, eps);
  const Pair p(boxes1, boxes2, aligned);
  const at::Tensor inter = intersection(p.a1, p.a2, p.b1, p.b2);
  const at::Tensor divisor = mode == "iof" ? product(p.a2 - p.a1).expand_as(inter).clamp_min(eps)
                                           : union_area(p.a1, p.a2, p.b1, p.b2, inter).clamp_min_(eps);
  at::Tensor iou = inter / divisor;
  if (mode == "giou") {
    const at::Tensor enclosing =
        product((at::maximum(p.a2, p.b2) - at::minimum(p.a1, p.b1)).clamp_min(0)).clamp_min(eps);
    iou = iou - (enclosing - divisor) / enclosing;
  }
  return iou.to(boxes1.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> box_iou_backward(const at::Tensor& grad, const at::Tensor& boxes1,
                                                    const at::Tensor& boxes2, c10::string_view mode,
                                                    bool aligned, double eps) {
  check_box_iou_backward(grad, boxes1, boxes2, mode, aligned, eps);
  const Pair p(boxes1, boxes2, aligned);
  const at::Tensor upstream = grad.to(p.a1.scalar_type());
  const at::Tensor gap = at::minimum(p.a2, p.b2) - at::maximum(p.a1, p.b1), sides = gap.clamp_min(0);
  const at::Tensor size1 = p.a2 - p.a1, size2 = p.b2 - p.b1, inter = product(sides);
  at::Tensor divisor = product(size1);
  divisor = mode == "iof" ? divisor.expand_as(inter) : divisor + product(size2) - inter;
  const at::Tensor clamped = divisor.clamp_min(eps);
  at::Tensor grad_inter = upstream / clamped;
  at::Tensor grad_divisor = -(grad_inter * (inter / clamped));
  at::Tensor grad_a1, grad_a2, grad_b1, grad_b2;
  const auto shared = [](const at::Tensor& grad, const at::Tensor& share, at::Tensor& first,
                         at::Tensor& second) {
    const at::Tensor one = grad * share, other = grad - one;
    first = first.defined() ? first + one : one;
    second = second.defined() ? second + other : other;
  };
  if (mode == "giou") {
    const at::Tensor hull = at::maximum(p.a2, p.b2) - at::minimum(p.a1, p.b1), hull_sides = hull.clamp_min(0);
    const at::Tensor hull_area = product(hull_sides), enclosing = hull_area.clamp_min(eps);
    grad_divisor = grad_divisor + upstream / enclosing;
    const at::Tensor grad_enclosing =
        -(upstream / enclosing * (clamped / enclosing)) * share_of_larger(hull_area, eps);
    const at::Tensor grad_hull = through_clamp(grad_enclosing.unsqueeze(0) * swapped(hull_sides), hull);
    shared(grad_hull, share_of_larger(p.a2, p.b2), grad_a2, grad_b2);
    shared(-grad_hull, share_of_larger(p.b1, p.a1), grad_a1, grad_b1);
  }
  grad_divisor = grad_divisor * share_of_larger(divisor, eps);
  if (mode != "iof") grad_inter = grad_inter - grad_divisor;
  const at::Tensor grad_gap = through_clamp(grad_inter.unsqueeze(0) * swapped(sides), gap);
  const at::Tensor share = share_of_larger(broadcast_stack(p.b2, p.a1), broadcast_stack(p.a2, p.b1));
  shared(grad_gap, share.select(0, 0), grad_a2, grad_b2);
  shared(-grad_gap, share.select(0, 1), grad_a1, grad_b1);
  const at::Tensor of_area1 = grad_divisor.unsqueeze(0) * swapped(size1);
  grad_a1 = grad_a1 - of_area1, grad_a2 = grad_a2 + of_area1;
  if (mode != "iof") {
    const at::Tensor of_area2 = grad_divisor.unsqueeze(0) * swapped(size2);
    grad_b1 = grad_b1 - of_area2, grad_b2 = grad_b2 + of_area2;
  }
  at::Tensor grad1 = at::cat({grad_a1, grad_a2}), grad2 = at::cat({grad_b1, grad_b2});
  if (!aligned) grad1 = grad1.sum(2), grad2 = grad2.sum(1);
  return {grad1.t().contiguous().to(boxes1.scalar_type()), grad2.t().contiguous().to(boxes2.scalar_type())};
}

}  // namespace yolox_ops::npu

namespace yolox_ops {
YOLOX_OPS_REGISTER_NPU(box_iou)
YOLOX_OPS_REGISTER_NPU(box_iou_backward)
}  // namespace yolox_ops
