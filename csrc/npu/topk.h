// Sorted values of each row, exact on every device. An Ascend 910A sorts float32 in float16, in which costs
// above 65504 are infinite and others lose their last digits.
#pragma once
#include <limits>
#include <tuple>
#include <utility>
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

// Of rows [..., N] float32 the k largest `gains`, falling, and the k least `costs`, rising: [..., k] each.
inline std::pair<at::Tensor, at::Tensor> best(const at::Tensor& gains, const at::Tensor& costs, int64_t k) {
  if (topk_is_exact(costs)) {
    return {std::get<0>(gains.topk(k, -1)),
            std::get<0>(costs.topk(k, -1, /*largest=*/false, /*sorted=*/true))};
  }
  // One after the other, both at once: reductions stay in float32.
  const at::Tensor places = at::arange(costs.size(-1), costs.options().dtype(at::kLong));
  const at::Tensor taken = at::full({}, std::numeric_limits<double>::infinity(), costs.options());
  at::Tensor left = at::stack({gains.neg(), costs});
  std::vector<at::Tensor> found;
  for (int64_t i = 0; i < k; ++i) {
    const at::Tensor at = left.argmin(-1, /*keepdim=*/true);
    found.push_back(left.gather(-1, at));
    if (i + 1 < k) left = at::where(places == at, taken, left);
  }
  const at::Tensor sorted = at::cat(found, -1);
  return {sorted.select(0, 0).neg(), sorted.select(0, 1)};
}

}  // namespace
}  // namespace yolox_ops::npu
