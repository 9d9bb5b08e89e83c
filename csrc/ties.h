// What box_iou's gradient shares with torch's own at a tie.
#pragma once
#include <torch/version.h>

namespace yolox_ops {

// Whether clamp(min=0) lets the gradient through at 0 itself: until torch 2.13 it did.
constexpr bool kThroughClampAtZero = TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 14;

}  // namespace yolox_ops
