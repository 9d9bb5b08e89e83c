// What box_iou and SimOTA share: the overlap of boxes given as corners [..., 2], broadcast against each
// other.
#pragma once
#include <vector>

#include "register.h"

namespace yolox_ops::npu {
namespace {

inline at::Tensor product(const at::Tensor& sides) { return sides.select(-1, 0) * sides.select(-1, 1); }

inline at::Tensor intersection(const at::Tensor& a1, const at::Tensor& a2, const at::Tensor& b1,
                               const at::Tensor& b2) {
  return product((at::minimum(a2, b2) - at::maximum(a1, b1)).clamp_min_(0));
}

// Both areas in one launch a step.
inline at::Tensor union_area(const at::Tensor& a1, const at::Tensor& a2, const at::Tensor& b1,
                             const at::Tensor& b2, const at::Tensor& inter) {
  const std::vector<at::Tensor> sides = at::_foreach_sub({a2, b2}, {a1, b1});
  const std::vector<at::Tensor> areas = at::_foreach_mul({sides[0].select(-1, 0), sides[1].select(-1, 0)},
                                                         {sides[0].select(-1, 1), sides[1].select(-1, 1)});
  return (areas[0] + areas[1]).sub_(inter);
}

}  // namespace
}  // namespace yolox_ops::npu
