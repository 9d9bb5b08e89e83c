// mmdet's ExpMomentumEMAHook update over all tensors in one parallel loop.
#include <vector>

#include "capability.h"
#include "checks.h"

namespace yolox_ops::CPU_CAPABILITY {
namespace {

template <typename T>
struct Piece {
  T* average;
  const T* value;
  int64_t size;
};

// Pieces are of equal size but for each tensor's last: work spreads evenly over the threads, and the many
// small tensors of a network cost no launch each.
template <typename T>
void update(const std::vector<Piece<T>>& pieces, double momentum) {
  const T keep = static_cast<T>(1 - momentum), take = static_cast<T>(momentum);
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* __restrict__ average = pieces[i].average;
      const T* __restrict__ value = pieces[i].value;
      for (int64_t k = 0; k < pieces[i].size; ++k) average[k] = average[k] * keep + value[k] * take;
    }
  });
}

template <typename T>
void append(const at::Tensor& average, const at::Tensor& value, std::vector<Piece<T>>& pieces) {
  constexpr int64_t piece = 1 << 15;
  T* to = average.mutable_data_ptr<T>();
  const T* from = value.const_data_ptr<T>();
  for (int64_t i = 0; i < average.numel(); i += piece) {
    pieces.push_back({to + i, from + i, std::min(piece, average.numel() - i)});
  }
}

}  // namespace

void ema_update_(at::TensorList average, at::TensorList value, double momentum) {
  TORCH_CHECK_VALUE(average.size() == value.size(), "value must be a list of ", average.size(),
                    " tensors, got ", value.size());
  check_fraction(momentum, "momentum");
  for (size_t i = 0; i < average.size(); ++i) {
    const at::Tensor &a = average[i], &v = value[i];
    TORCH_CHECK_TYPE(at::isFloatingType(a.scalar_type()), "average[", i, "] must be floating point, got ",
                     a.dtype().name());
    TORCH_CHECK_TYPE(a.scalar_type() == v.scalar_type(), "value[", i, "] must be ", a.dtype().name(),
                     ", got ", v.dtype().name());
    TORCH_CHECK_VALUE(a.sizes() == v.sizes(), "value[", i, "] must be ", a.sizes(), ", got ", v.sizes());
  }
  std::vector<Piece<float>> floats;
  std::vector<Piece<double>> doubles;
  for (size_t i = 0; i < average.size(); ++i) {
    const at::Tensor &a = average[i], &v = value[i];
    const bool same_layout = a.is_non_overlapping_and_dense() && a.strides() == v.strides();
    if (same_layout && a.scalar_type() == at::kFloat) {
      append(a, v, floats);
    } else if (same_layout && a.scalar_type() == at::kDouble) {
      append(a, v, doubles);
    } else {
      a.mul_(1 - momentum).add_(v, momentum);
    }
  }
  update(floats, momentum);
  update(doubles, momentum);
}

}  // namespace yolox_ops::CPU_CAPABILITY

namespace yolox_ops {
YOLOX_OPS_REGISTER_CPU(ema_update_)
}  // namespace yolox_ops
