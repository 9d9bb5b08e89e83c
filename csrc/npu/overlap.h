// What box_iou and SimOTA share: the overlap of boxes, broadcast against each other. Corners are [2, ...],
// the coordinates first: each is then one piece of memory, which a device would have to copy together from a
// last axis of 4.
#pragma once
#include "register.h"

namespace yolox_ops::npu {
namespace {

inline at::Tensor product(const at::Tensor& sides) { return sides.select(0, 0) * sides.select(0, 1); }

inline at::Tensor intersection(const at::Tensor& a1, const at::Tensor& a2, const at::Tensor& b1,
                               const at::Tensor& b2) {
  return product((at::minimum(a2, b2) - at::maximum(a1, b1)).clamp_min_(0));
}

inline at::Tensor union_area(const at::Tensor& a1, const at::Tensor& a2, const at::Tensor& b1,
                             const at::Tensor& b2, const at::Tensor& inter) {
  return (product(a2 - a1) + product(b2 - b1)).sub_(inter);
}

}  // namespace
}  // namespace yolox_ops::npu
