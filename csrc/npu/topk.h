// The k largest or least values of each row, exact on every device. An Ascend 910A sorts float32 in float16,
// in which costs above 65504 are infinite and others lose their last digits.
#pragma once
#include <limits>
#include <tuple>
#include <vector>

#include "register.h"

namespace yolox_ops::npu {
namespace {

// Whether topk returns the values it was given: asked of the device once, which is the only wait here.
inline bool topk_is_exact(const at::Tensor& like) {
  if (like.device().type() != at::kPrivateUse1) return true;
  static const bool exact = [&] {
    const at::Tensor probe = at::full({16}, 70000.5, like.options());
    return std::get<0>(probe.topk(8)).eq(probe.narrow(0, 0, 8)).all().item<bool>();
  }();
  return exact;
}

// values [..., N] float32: [..., k], sorted.
inline at::Tensor topk_values(const at::Tensor& values, int64_t k, bool largest) {
  if (topk_is_exact(values)) return std::get<0>(values.topk(k, -1, largest, /*sorted=*/true));
  const at::Tensor places = at::arange(values.size(-1), values.options().dtype(at::kLong));
  const double least =
      largest ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity();
  const at::Tensor taken = at::full({}, least, values.options());
  std::vector<at::Tensor> found;
  at::Tensor left = values;
  for (int64_t i = 0; i < k; ++i) {
    const at::Tensor at = largest ? left.argmax(-1, true) : left.argmin(-1, true);
    found.push_back(left.gather(-1, at));
    if (i + 1 < k) left = at::where(places == at, taken, left);
  }
  return at::cat(found, -1);
}

}  // namespace
}  // namespace yolox_ops::npu
