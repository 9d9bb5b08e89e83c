// Box overlaps: mmdet's bbox_overlaps, and its gradient with torch's conventions at ties.
#include <string_view>
#include <tuple>
#include <vector>

#include "capability.h"
#include "checks.h"
#include "ties.h"

namespace yolox_ops::CPU_CAPABILITY {
namespace {

enum class Mode { kIou, kIof, kGiou };

Mode parse(c10::string_view mode) {
  if (mode == "iou") return Mode::kIou;
  return mode == "iof" ? Mode::kIof : Mode::kGiou;
}

// Unlike std::min and std::max, a NaN on either side wins, as in torch.
template <typename T>
inline T lower(T a, T b) {
  return a < b || a != a ? a : b;
}
template <typename T>
inline T upper(T a, T b) {
  return a > b || a != a ? a : b;
}

// One instruction each. What they make of a NaN does not matter where the areas, into which every coordinate
// goes, carry it to the result.
template <typename T>
inline T least(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
inline T greatest(T a, T b) {
  return a > b ? a : b;
}

template <typename T>
struct Box {
  T x1, y1, x2, y2;
};

// Columns of x1, y1, x2, y2: what the vector units read without shuffles.
template <typename T>
std::vector<T> columns(const at::Tensor& boxes) {
  const int64_t n = boxes.size(0);
  const T* in = boxes.const_data_ptr<T>();
  std::vector<T> out(4 * n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < 4; ++k) out[k * n + i] = in[4 * i + k];
  }
  return out;
}

template <typename T, Mode mode>
inline T overlap(Box<T> a, Box<T> b, T eps) {
  T w, h;
  if constexpr (mode == Mode::kIof) {  // the second box has no part in the divisor
    w = upper(lower(a.x2, b.x2) - upper(a.x1, b.x1), T(0));
    h = upper(lower(a.y2, b.y2) - upper(a.y1, b.y1), T(0));
  } else {
    w = greatest(least(a.x2, b.x2) - greatest(a.x1, b.x1), T(0));
    h = greatest(least(a.y2, b.y2) - greatest(a.y1, b.y1), T(0));
  }
  const T inter = w * h;
  const T area1 = (a.x2 - a.x1) * (a.y2 - a.y1);
  T divisor = area1;
  if constexpr (mode != Mode::kIof) divisor = area1 + (b.x2 - b.x1) * (b.y2 - b.y1) - inter;
  divisor = upper(divisor, eps);
  if constexpr (mode != Mode::kGiou) {
    return inter / divisor;
  } else {
    const T enclosing_w = greatest(greatest(a.x2, b.x2) - least(a.x1, b.x1), T(0));
    const T enclosing_h = greatest(greatest(a.y2, b.y2) - least(a.y1, b.y1), T(0));
    const T enclosing = upper(enclosing_w * enclosing_h, eps);  // infinity times 0 is NaN
    return inter / divisor - (enclosing - divisor) / enclosing;
  }
}

template <typename T, Mode mode>
void forward(const at::Tensor& boxes1, const at::Tensor& boxes2, bool aligned, double eps, at::Tensor& out) {
  const int64_t m = boxes1.size(0), n = boxes2.size(0);
  const auto* first = reinterpret_cast<const Box<T>*>(boxes1.const_data_ptr<T>());
  const auto* second = reinterpret_cast<const Box<T>*>(boxes2.const_data_ptr<T>());
  T* result = out.mutable_data_ptr<T>();
  const T floor = static_cast<T>(eps);
  if (aligned) {
    at::parallel_for(0, m, 4096, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) result[i] = overlap<T, mode>(first[i], second[i], floor);
    });
    return;
  }
  const std::vector<T> columns2 = columns<T>(boxes2);
  const T *x1 = columns2.data(), *y1 = x1 + n, *x2 = y1 + n, *y2 = x2 + n;
  at::parallel_for(0, m, std::max<int64_t>(1, 16384 / std::max<int64_t>(n, 1)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       const Box<T> a = first[i];
                       T* row = result + i * n;
                       for (int64_t j = 0; j < n; ++j)
                         row[j] = overlap<T, mode>(a, {x1[j], y1[j], x2[j], y2[j]}, floor);
                     }
                   });
}

// d/da and d/db of max(a, b); equal values share the gradient, as torch.maximum has it. `sign` -1 gives
// min(a, b).
template <typename T>
inline void split(T grad, T a, T b, T sign, T& grad_a, T& grad_b) {
  const T share = a == b ? T(0.5) : (sign * a > sign * b ? T(1) : T(0));
  grad_a += grad * share;
  grad_b += grad * (T(1) - share);
}

template <typename T>
inline T above(T value, T floor) {
  return value > floor ? T(1) : (value == floor ? T(0.5) : T(0));
}

template <typename T>
inline T through_clamp(T grad, T value) {
  return (kThroughClampAtZero ? value >= 0 : value > 0) ? grad : T(0);
}

template <typename T, Mode mode>
inline void overlap_backward(Box<T> a, Box<T> b, T eps, T grad, Box<T>& ga, Box<T>& gb) {
  const T dx = lower(a.x2, b.x2) - upper(a.x1, b.x1), dy = lower(a.y2, b.y2) - upper(a.y1, b.y1);
  const T w = upper(dx, T(0)), h = upper(dy, T(0)), inter = w * h;
  const T w1 = a.x2 - a.x1, h1 = a.y2 - a.y1, w2 = b.x2 - b.x1, h2 = b.y2 - b.y1;
  T divisor = w1 * h1;
  if constexpr (mode != Mode::kIof) divisor = w1 * h1 + w2 * h2 - inter;
  const T clamped = upper(divisor, eps);
  // No square of an area, which would overflow: grad times a ratio.
  T grad_inter = grad / clamped;
  T grad_divisor = -(grad_inter * (inter / clamped));
  if constexpr (mode == Mode::kGiou) {
    const T ex = upper(a.x2, b.x2) - lower(a.x1, b.x1), ey = upper(a.y2, b.y2) - lower(a.y1, b.y1);
    const T ew = upper(ex, T(0)), eh = upper(ey, T(0)), enclosing = upper(ew * eh, eps);
    grad_divisor += grad / enclosing;
    const T grad_enclosing = -(grad / enclosing * (clamped / enclosing)) * above(ew * eh, eps);
    const T grad_ex = through_clamp(grad_enclosing * eh, ex),
            grad_ey = through_clamp(grad_enclosing * ew, ey);
    split(grad_ex, a.x2, b.x2, T(1), ga.x2, gb.x2);
    split(-grad_ex, a.x1, b.x1, T(-1), ga.x1, gb.x1);
    split(grad_ey, a.y2, b.y2, T(1), ga.y2, gb.y2);
    split(-grad_ey, a.y1, b.y1, T(-1), ga.y1, gb.y1);
  }
  grad_divisor *= above(divisor, eps);
  if constexpr (mode != Mode::kIof) {
    grad_inter -= grad_divisor;
    gb.x2 += grad_divisor * h2, gb.x1 -= grad_divisor * h2;
    gb.y2 += grad_divisor * w2, gb.y1 -= grad_divisor * w2;
  }
  ga.x2 += grad_divisor * h1, ga.x1 -= grad_divisor * h1;
  ga.y2 += grad_divisor * w1, ga.y1 -= grad_divisor * w1;
  const T grad_dx = through_clamp(grad_inter * h, dx), grad_dy = through_clamp(grad_inter * w, dy);
  split(grad_dx, a.x2, b.x2, T(-1), ga.x2, gb.x2);
  split(-grad_dx, a.x1, b.x1, T(1), ga.x1, gb.x1);
  split(grad_dy, a.y2, b.y2, T(-1), ga.y2, gb.y2);
  split(-grad_dy, a.y1, b.y1, T(1), ga.y1, gb.y1);
}

// Pairs are visited twice, by row and by column: each gradient is then summed by one thread, in one order.
template <typename T, Mode mode>
void backward(const at::Tensor& grad, const at::Tensor& boxes1, const at::Tensor& boxes2, bool aligned,
              double eps, at::Tensor& grad1, at::Tensor& grad2) {
  const int64_t m = boxes1.size(0), n = boxes2.size(0);
  const auto* first = reinterpret_cast<const Box<T>*>(boxes1.const_data_ptr<T>());
  const auto* second = reinterpret_cast<const Box<T>*>(boxes2.const_data_ptr<T>());
  const T* upstream = grad.const_data_ptr<T>();
  auto* out1 = reinterpret_cast<Box<T>*>(grad1.mutable_data_ptr<T>());
  auto* out2 = reinterpret_cast<Box<T>*>(grad2.mutable_data_ptr<T>());
  const T floor = static_cast<T>(eps);
  at::parallel_for(0, m, aligned ? 2048 : std::max<int64_t>(1, 8192 / std::max<int64_t>(n, 1)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) {
                       Box<T> sum{}, other{};
                       if (aligned) {
                         overlap_backward<T, mode>(first[i], second[i], floor, upstream[i], sum, other);
                         out2[i] = other;
                       } else {
                         for (int64_t j = 0; j < n; ++j) {
                           overlap_backward<T, mode>(first[i], second[j], floor, upstream[i * n + j], sum,
                                                     other);
                         }
                       }
                       out1[i] = sum;
                     }
                   });
  if (aligned) return;
  at::parallel_for(
      0, n, std::max<int64_t>(1, 8192 / std::max<int64_t>(m, 1)), [&](int64_t begin, int64_t end) {
        for (int64_t j = begin; j < end; ++j) {
          Box<T> sum{}, other{};
          for (int64_t i = 0; i < m; ++i) {
            overlap_backward<T, mode>(first[i], second[j], floor, upstream[i * n + j], other, sum);
          }
          out2[j] = sum;
        }
      });
}

template <typename F>
void with_type_and_mode(at::ScalarType type, Mode mode, F&& run) {
  const auto with_mode = [&](auto zero) {
    switch (mode) {
      case Mode::kIou:
        return run(zero, std::integral_constant<Mode, Mode::kIou>());
      case Mode::kIof:
        return run(zero, std::integral_constant<Mode, Mode::kIof>());
      case Mode::kGiou:
        return run(zero, std::integral_constant<Mode, Mode::kGiou>());
    }
  };
  type == at::kDouble ? with_mode(0.0) : with_mode(0.0F);
}

}  // namespace

at::Tensor box_iou(const at::Tensor& boxes1, const at::Tensor& boxes2, c10::string_view mode, bool aligned,
                   double eps) {
  check_box_iou(boxes1, boxes2, mode, aligned, eps);
  const Mode parsed = parse(mode);
  const auto type = compute_type(boxes1.scalar_type());
  const at::Tensor first = boxes1.to(type).contiguous(), second = boxes2.to(type).contiguous();
  const int64_t m = first.size(0), n = second.size(0);
  at::Tensor out = aligned ? at::empty({m}, first.options()) : at::empty({m, n}, first.options());
  with_type_and_mode(type, parsed, [&](auto zero, auto constant) {
    forward<decltype(zero), decltype(constant)::value>(first, second, aligned, eps, out);
  });
  return out.to(boxes1.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> box_iou_backward(const at::Tensor& grad, const at::Tensor& boxes1,
                                                    const at::Tensor& boxes2, c10::string_view mode,
                                                    bool aligned, double eps) {
  check_box_iou_backward(grad, boxes1, boxes2, mode, aligned, eps);
  const Mode parsed = parse(mode);
  const auto type = compute_type(boxes1.scalar_type());
  const at::Tensor first = boxes1.to(type).contiguous(), second = boxes2.to(type).contiguous();
  const at::Tensor upstream = grad.to(type).contiguous();
  at::Tensor grad1 = at::empty_like(first), grad2 = at::empty_like(second);
  with_type_and_mode(type, parsed, [&](auto zero, auto constant) {
    backward<decltype(zero), decltype(constant)::value>(upstream, first, second, aligned, eps, grad1, grad2);
  });
  return {grad1.to(boxes1.scalar_type()), grad2.to(boxes2.scalar_type())};
}

}  // namespace yolox_ops::CPU_CAPABILITY

namespace yolox_ops {
YOLOX_OPS_REGISTER_CPU(box_iou)
YOLOX_OPS_REGISTER_CPU(box_iou_backward)
}  // namespace yolox_ops
