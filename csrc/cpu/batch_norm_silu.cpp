// torch's batch norm followed by its SiLU, and their gradient from the norm's input alone.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <type_traits>
#include <vector>

#include "capability.h"
#include "checks.h"
#include "sigmoid.h"

namespace yolox_ops::CPU_CAPABILITY {
namespace {

template <typename T>
constexpr bool kHalf = std::is_same_v<T, at::Half> || std::is_same_v<T, at::BFloat16>;
// What a value is computed as.
template <typename T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;
// What the sum of a few values is taken in, before it goes into a sum in double.
template <typename T>
using Partial = std::conditional_t<kHalf<T>, float, double>;

// Values are computed in pieces, so that what is between two steps stays in the nearest cache.
constexpr int64_t kPiece = 512;
// Rows that are summed at once, the most values in a row that a plane is cut into, and how many sums are
// taken of the rows, each of so many values at least. None depends on the number of threads or on the
// instruction set, and so no sum does.
constexpr int64_t kRows = 4, kLeastLanes = 16, kMostLanes = 128, kMostParts = 64, kLeastPart = 1 << 15;

// Two layouts. Planes: of each image, one of `size` values for each channel. Rows: `size` of them, of a value
// for each channel.
struct Shape {
  bool rows;
  int64_t images, channels, size;
  int64_t count() const { return images * size; }  // of a channel's values
  // The length of the rows that a plane is cut into: so that kRows are little less than it or a part of it.
  int64_t lanes() const {
    return std::clamp(size / kRows / kLeastLanes * kLeastLanes, kLeastLanes, kMostLanes);
  }
};

Shape shape_of(const at::Tensor& packed) {
  const int64_t n = packed.size(0), c = packed.size(1), plane = packed.size(2) * packed.size(3);
  if (plane == 1 || !packed.is_contiguous()) return {true, 1, c, n * plane};
  return {false, n, c, plane};
}

// Several rows as one, so that a row of few channels fills the vector units too.
struct WideRows {
  explicit WideRows(const Shape& shape)
      : repeats(std::max<int64_t>(kPiece / shape.channels, 1)),
        width(repeats * shape.channels),
        values(shape.channels * shape.size),
        count((values + width - 1) / width) {}
  int64_t repeats, width, values, count;

  template <typename C>
  std::vector<C> widened(const std::vector<C>& of_channels) const {
    std::vector<C> all;
    for (int64_t k = 0; k < repeats; ++k) all.insert(all.end(), of_channels.begin(), of_channels.end());
    return all;
  }
};

// Of each channel: z = (x - mean) * scale + shift is what SiLU is taken of.
template <typename C>
struct Affine {
  std::vector<C> mean, scale, shift;
};

// What the gradient is made of: grad_x = (grad_z - level - (x - mean) * slope) * scale.
template <typename C>
struct Gradient {
  std::vector<C> level, slope;
};

template <typename C>
std::vector<C> numbers(const at::Tensor& tensor) {
  const at::Tensor packed = tensor.to(c10::CppTypeToScalarType<C>::value).contiguous();
  const C* begin = packed.const_data_ptr<C>();
  return {begin, begin + packed.numel()};
}

template <typename C>
Affine<C> affine(const at::Tensor& mean, const at::Tensor& invstd, const OptionalTensor& weight,
                 const OptionalTensor& bias) {
  Affine<C> result{numbers<C>(mean), numbers<C>(invstd), std::vector<C>(mean.numel())};
  if (weight) {
    const std::vector<C> factor = numbers<C>(*weight);
    for (size_t c = 0; c < factor.size(); ++c) result.scale[c] *= factor[c];
  }
  if (bias) result.shift = numbers<C>(*bias);
  return result;
}

// `n` values as they are computed with: in place, or converted into `room`.
template <typename T>
inline const Compute<T>* read(const T* from, int64_t n, Compute<T>* room) {
  if constexpr (!kHalf<T>) {
    return from;
  } else {
    for (int64_t i = 0; i < n; ++i) room[i] = static_cast<float>(from[i]);
    return room;
  }
}

// Where to compute `n` values that go to `to`: there, or in `room`, from where `write` takes them.
template <typename T>
inline Compute<T>* place(T* to, Compute<T>* room) {
  if constexpr (!kHalf<T>) {
    return to;
  } else {
    return room;
  }
}
template <typename T>
inline void write(T* to, int64_t n, const Compute<T>* room) {
  if constexpr (kHalf<T>) {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(room[i]);
  }
}

template <typename T>
inline Compute<T> sigmoid_as(Compute<T> z) {
  if constexpr (std::is_same_v<T, at::BFloat16>) {  // has 8 bits
    return 1 / (1 + exponential_of_negative<true>(z));
  } else {
    return 1 / (1 + exponential_of_negative(z));
  }
}

// In what follows the channel of value i is i if values lie in rows, else the same for all.
template <bool rows, typename T, typename C>
inline void norm_silu(const C* x, int64_t n, const C* mean, const C* scale, const C* shift,
                      C* __restrict__ y) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t c = rows ? i : 0;
    const C z = std::fma(x[i] - mean[c], scale[c], shift[c]);
    y[i] = z * sigmoid_as<T>(z);
  }
}

// The gradient by z, as torch's SiLU has it, and x - mean.
template <bool rows, typename T, typename C>
inline void gradient_of_z(const C* grad, const C* x, int64_t n, const C* mean, const C* scale, const C* shift,
                          C* __restrict__ grad_z, C* __restrict__ centered) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t c = rows ? i : 0;
    const C from_mean = x[i] - mean[c];
    const C z = std::fma(from_mean, scale[c], shift[c]);
    const C s = sigmoid_as<T>(z);
    grad_z[i] = grad[i] * s * std::fma(z, 1 - s, C(1));
    centered[i] = from_mean;
  }
}

template <bool rows, typename C>
inline void gradient_of_x(const C* grad_z, const C* x, int64_t n, const C* mean, const C* scale,
                          const C* level, const C* slope, C* grad_x) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t c = rows ? i : 0;
    grad_x[i] = std::fma(mean[c] - x[i], slope[c], grad_z[i] - level[c]) * scale[c];
  }
}

// Adds a - pivot and its square for values a of `together` rows, kRows or 1.
template <bool rows, typename P, typename C>
inline void add_moments(const C* const* a, int64_t together, int64_t n, const P* pivot,
                        double* __restrict__ first, double* __restrict__ second) {
  if (together == kRows) {
    const C *a0 = a[0], *a1 = a[1], *a2 = a[2], *a3 = a[3];
    for (int64_t i = 0; i < n; ++i) {
      const P from = pivot[rows ? i : 0];
      const P d0 = a0[i] - from, d1 = a1[i] - from, d2 = a2[i] - from, d3 = a3[i] - from;
      first[i] += (d0 + d1) + (d2 + d3);
      second[i] += std::fma(d0, d0, d1 * d1) + std::fma(d2, d2, d3 * d3);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const P d = a[0][i] - pivot[rows ? i : 0];
      first[i] += d;
      second[i] += d * d;
    }
  }
}

// Adds a and a * b.
template <typename P, typename C>
inline void add_products(const C* const* a, const C (*b)[kPiece], int64_t together, int64_t n,
                         double* __restrict__ first, double* __restrict__ second) {
  if (together == kRows) {
    const C *a0 = a[0], *a1 = a[1], *a2 = a[2], *a3 = a[3];
    for (int64_t i = 0; i < n; ++i) {
      const P p0 = a0[i], p1 = a1[i], p2 = a2[i], p3 = a3[i];
      const P q0 = b[0][i], q1 = b[1][i], q2 = b[2][i], q3 = b[3][i];
      first[i] += (p0 + p1) + (p2 + p3);
      second[i] += std::fma(p0, q0, p1 * q1) + std::fma(p2, q2, p3 * q3);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const P p = a[0][i], q = b[0][i];
      first[i] += p;
      second[i] += p * q;
    }
  }
}

struct Sums {
  double first = 0, second = 0;
};

// Calls add(at, c, together, n, first, second) for all values in [begin, end), which lie in rows of `width`:
// for n of them from `at` on, in `together` rows (kRows or 1), whose place in their row is c.
template <typename Add>
inline void each_rows(int64_t begin, int64_t end, int64_t width, double* first, double* second,
                      const Add& add) {
  for (int64_t row = begin; row < end;) {
    const int64_t together = row + kRows * width <= end ? kRows : 1;
    const int64_t length = std::min(width, end - row);
    for (int64_t c = 0; c < length; c += kPiece) {
      add(row + c, c, together, std::min(kPiece, length - c), first + c, second + c);
    }
    row += together * width;
  }
}

// Two sums for each channel of rows.
template <typename Add>
std::vector<Sums> sums_of_rows(const WideRows& wide, int64_t channels, const Add& add) {
  const int64_t parts = std::clamp<int64_t>(wide.values / kLeastPart, 1, kMostParts);
  const int64_t per_part = (wide.count + parts - 1) / parts * wide.width;
  std::vector<double> partial(2 * parts * wide.width);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      double* first = partial.data() + 2 * part * wide.width;
      each_rows(std::min(part * per_part, wide.values), std::min((part + 1) * per_part, wide.values),
                wide.width, first, first + wide.width, add);
    }
  });
  std::vector<Sums> sums(channels);
  for (int64_t part = 0; part < parts; ++part) {
    const double *first = partial.data() + 2 * part * wide.width, *second = first + wide.width;
    for (int64_t begin = 0; begin < wide.width; begin += channels) {
      for (int64_t c = 0; c < channels; ++c) {
        sums[c].first += first[begin + c];
        sums[c].second += second[begin + c];
      }
    }
  }
  return sums;
}

// Two sums of a channel's planes.
template <typename Add>
Sums sums_of_planes(const Shape& shape, int64_t channel, const Add& add) {
  double first[kMostLanes], second[kMostLanes];
  const int64_t lanes = shape.lanes();
  std::fill_n(first, lanes, 0.0), std::fill_n(second, lanes, 0.0);
  for (int64_t image = 0; image < shape.images; ++image) {
    const int64_t plane = (image * shape.channels + channel) * shape.size;
    each_rows(plane, plane + shape.size, lanes, first, second, add);
  }
  for (int64_t begin = kLeastLanes; begin < lanes; begin += kLeastLanes) {
    for (int64_t k = 0; k < kLeastLanes; ++k) first[k] += first[begin + k], second[k] += second[begin + k];
  }
  Sums sums;
  for (int64_t k = 0; k < kLeastLanes; ++k) sums.first += first[k], sums.second += second[k];
  return sums;
}

// Calls use(at, n, c) for all values in pieces: n of them from `at` on. c is the place in a wide row of those
// that lie in rows, else their channel.
template <typename Use>
void each_piece_of_rows(const WideRows& wide, const Use& use) {
  at::parallel_for(0, wide.count, kLeastPart / wide.width + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t at = row * wide.width, length = std::min(wide.width, wide.values - at);
      for (int64_t c = 0; c < length; c += kPiece) use(at + c, std::min(kPiece, length - c), c);
    }
  });
}
template <typename Use>
inline void each_piece_of_plane(const Shape& shape, int64_t image, int64_t channel, const Use& use) {
  const int64_t plane = (image * shape.channels + channel) * shape.size;
  for (int64_t i = 0; i < shape.size; i += kPiece) {
    use(plane + i, std::min(kPiece, shape.size - i), channel);
  }
}
template <typename Use>
void each_channel(const Shape& shape, const Use& use) {
  at::parallel_for(0, shape.channels, kLeastPart / shape.count() + 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) use(c);
  });
}

// One of a channel's values, which is subtracted from all, so that a mean that is large beside the deviations
// costs no digits.
template <typename T>
Partial<T> pivot_of(T value) {
  const Partial<T> pivot = static_cast<Compute<T>>(value);
  return std::isfinite(pivot) ? pivot : 0;
}

struct Moments {
  double mean, variance;
};

Moments moments(Sums sums, double pivot, int64_t count) {
  const double mean = sums.first / count, variance = sums.second / count - mean * mean;
  return {pivot + mean, variance < 0 ? 0 : variance};
}

template <typename T>
std::vector<Moments> batch_moments(const Shape& shape, const T* x) {
  using C = Compute<T>;
  std::vector<Moments> result(shape.channels);
  if (shape.rows) {
    const WideRows wide(shape);
    std::vector<Partial<T>> pivots(shape.channels);
    for (int64_t c = 0; c < shape.channels; ++c) pivots[c] = pivot_of(x[c]);
    const std::vector<Partial<T>> wide_pivots = wide.widened(pivots);
    const auto add = [&](int64_t at, int64_t c, int64_t together, int64_t n, double* first, double* second) {
      C room[kRows][kPiece];
      const C* a[kRows];
      for (int64_t k = 0; k < together; ++k) a[k] = read(x + at + k * wide.width, n, room[k]);
      add_moments<true>(a, together, n, &wide_pivots[c], first, second);
    };
    const std::vector<Sums> sums = sums_of_rows(wide, shape.channels, add);
    for (int64_t c = 0; c < shape.channels; ++c) result[c] = moments(sums[c], pivots[c], shape.count());
  } else {
    each_channel(shape, [&](int64_t channel) {
      const Partial<T> pivot = pivot_of(x[channel * shape.size]);
      const auto add = [&](int64_t at, int64_t, int64_t together, int64_t n, double* first, double* second) {
        C room[kRows][kMostLanes];
        const C* a[kRows];
        for (int64_t k = 0; k < together; ++k) a[k] = read(x + at + k * shape.lanes(), n, room[k]);
        add_moments<false>(a, together, n, &pivot, first, second);
      };
      result[channel] = moments(sums_of_planes(shape, channel, add), pivot, shape.count());
    });
  }
  return result;
}

template <bool rows, typename T>
inline void forward_piece(const T* x, int64_t n, const Affine<Compute<T>>& of, int64_t c, T* y) {
  Compute<T> room[kPiece], out[kPiece];
  norm_silu<rows, T>(read(x, n, room), n, &of.mean[c], &of.scale[c], &of.shift[c], place(y, out));
  write(y, n, out);
}

template <typename C>
Affine<C> widened(const WideRows& wide, const Affine<C>& of) {
  return {wide.widened(of.mean), wide.widened(of.scale), wide.widened(of.shift)};
}

template <typename T>
void forward(const Shape& shape, const T* x, const Affine<Compute<T>>& of, T* y) {
  if (shape.rows) {
    const WideRows wide(shape);
    const Affine<Compute<T>> wide_of = widened(wide, of);
    each_piece_of_rows(
        wide, [&](int64_t at, int64_t n, int64_t c) { forward_piece<true>(x + at, n, wide_of, c, y + at); });
  } else {
    each_channel(shape, [&](int64_t channel) {
      for (int64_t image = 0; image < shape.images; ++image) {
        each_piece_of_plane(shape, image, channel, [&](int64_t at, int64_t n, int64_t c) {
          forward_piece<false>(x + at, n, of, c, y + at);
        });
      }
    });
  }
}

// Leaves the gradients of z in `grad_z`, and adds them and their products with x - mean.
template <bool rows, typename T>
inline void gradient_sums(const T* grad, const T* x, int64_t width, const Affine<Compute<T>>& of, int64_t c,
                          int64_t together, int64_t n, T* grad_z, double* first, double* second) {
  using C = Compute<T>;
  C grad_room[kPiece], x_room[kPiece], room[kRows][kPiece], centered[kRows][kPiece];
  const C* of_z[kRows];
  for (int64_t k = 0; k < together; ++k) {
    const int64_t at = k * width;
    C* out = place(grad_z + at, room[k]);
    gradient_of_z<rows, T>(read(grad + at, n, grad_room), read(x + at, n, x_room), n, &of.mean[c],
                           &of.scale[c], &of.shift[c], out, centered[k]);
    write(grad_z + at, n, out);
    of_z[k] = read(grad_z + at, n, room[k]);  // as rounded: what is subtracted has to be the mean of that
  }
  add_products<Partial<T>>(of_z, centered, together, n, first, second);
}

template <bool rows, typename T>
inline void backward_piece(const T* x, int64_t n, const Affine<Compute<T>>& of,
                           const Gradient<Compute<T>>& parts, int64_t c, T* grad) {
  Compute<T> grad_room[kPiece], x_room[kPiece], out[kPiece];
  gradient_of_x<rows>(read(grad, n, grad_room), read(x, n, x_room), n, &of.mean[c], &of.scale[c],
                      &parts.level[c], &parts.slope[c], place(grad, out));
  write(grad, n, out);
}

// The sums of grad_z and of grad_z * (x - mean). In between grad_z lies in `grad_x`, in its type, as it does
// between torch's operators.
template <typename T>
std::vector<Sums> backward(const Shape& shape, const T* grad, const T* x, const Affine<Compute<T>>& of,
                           const std::vector<Compute<T>>& invstd, bool training, T* grad_x) {
  using C = Compute<T>;
  Gradient<C> parts{std::vector<C>(shape.channels), std::vector<C>(shape.channels)};
  const auto split = [&](int64_t c, Sums sums) {
    if (!training) return;  // mean and deviation do not depend on x
    const double deviation = invstd[c];
    parts.level[c] = static_cast<C>(sums.first / shape.count());
    parts.slope[c] = static_cast<C>(sums.second / shape.count() * deviation * deviation);
  };
  if (shape.rows) {
    const WideRows wide(shape);
    const Affine<C> wide_of = widened(wide, of);
    const auto add = [&](int64_t at, int64_t c, int64_t together, int64_t n, double* first, double* second) {
      gradient_sums<true>(grad + at, x + at, wide.width, wide_of, c, together, n, grad_x + at, first, second);
    };
    const std::vector<Sums> sums = sums_of_rows(wide, shape.channels, add);
    for (int64_t c = 0; c < shape.channels; ++c) split(c, sums[c]);
    const Gradient<C> wide_parts{wide.widened(parts.level), wide.widened(parts.slope)};
    each_piece_of_rows(wide, [&](int64_t at, int64_t n, int64_t c) {
      backward_piece<true>(x + at, n, wide_of, wide_parts, c, grad_x + at);
    });
    return sums;
  }
  std::vector<Sums> sums(shape.channels);
  each_channel(shape, [&](int64_t channel) {
    const auto add = [&](int64_t at, int64_t, int64_t together, int64_t n, double* first, double* second) {
      gradient_sums<false>(grad + at, x + at, shape.lanes(), of, channel, together, n, grad_x + at, first,
                           second);
    };
    sums[channel] = sums_of_planes(shape, channel, add);
    split(channel, sums[channel]);
    for (int64_t image = 0; image < shape.images; ++image) {
      each_piece_of_plane(shape, image, channel, [&](int64_t at, int64_t n, int64_t c) {
        backward_piece<false>(x + at, n, of, parts, c, grad_x + at);
      });
    }
  });
  return sums;
}

template <typename Run>
void with_type(at::ScalarType type, const Run& run) {
  switch (type) {
    case at::kDouble:
      return run(double());
    case at::kHalf:
      return run(at::Half());
    case at::kBFloat16:
      return run(at::BFloat16());
    default:
      return run(float());
  }
}

at::Tensor of_channels(int64_t channels) { return at::empty({channels}, at::kDouble); }

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_silu(const at::Tensor& input,
                                                               const OptionalTensor& weight,
                                                               const OptionalTensor& bias,
                                                               const OptionalTensor& running_mean,
                                                               const OptionalTensor& running_var,
                                                               bool training, double momentum, double eps) {
  check_batch_norm_silu(input, weight, bias, running_mean, running_var, training, momentum, eps);
  const at::MemoryFormat layout = input.suggest_memory_format();
  const at::Tensor x = input.contiguous(layout);
  at::Tensor y = at::empty_like(x);
  const auto statistics = x.options().dtype(compute_type(x.scalar_type()));
  at::Tensor mean = at::empty({x.size(1)}, statistics), invstd = at::empty({x.size(1)}, statistics);
  if (!x.numel()) return {y, mean.zero_(), invstd.fill_(1)};
  const Shape shape = shape_of(x);
  if (training) {
    at::Tensor mean64 = of_channels(shape.channels), variance64 = of_channels(shape.channels);
    with_type(x.scalar_type(), [&](auto zero) {
      const std::vector<Moments> found = batch_moments(shape, x.const_data_ptr<decltype(zero)>());
      for (int64_t c = 0; c < shape.channels; ++c) {
        mean64.mutable_data_ptr<double>()[c] = found[c].mean;
        variance64.mutable_data_ptr<double>()[c] = found[c].variance;
      }
    });
    mean.copy_(mean64);
    invstd.copy_((variance64 + eps).rsqrt_());
    const auto follow = [&](const OptionalTensor& running, const at::Tensor& batch, double factor) {
      if (running) running->copy_(running->to(at::kDouble) * (1 - momentum) + batch * (momentum * factor));
    };
    const double count = shape.count();
    follow(running_mean, mean64, 1);
    follow(running_var, variance64, count / (count - 1));
  } else {
    mean.copy_(*running_mean);
    invstd.copy_((running_var->to(at::kDouble) + eps).rsqrt_());
  }
  with_type(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    forward(shape, x.const_data_ptr<T>(), affine<Compute<T>>(mean, invstd, weight, bias),
            y.mutable_data_ptr<T>());
  });
  return {y, mean, invstd};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm_silu_backward(
    const at::Tensor& grad, const at::Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
    const at::Tensor& mean, const at::Tensor& invstd, bool training) {
  check_batch_norm_silu_backward(grad, input, weight, bias, mean, invstd);
  const at::MemoryFormat layout = input.suggest_memory_format();
  const at::Tensor x = input.contiguous(layout), upstream = grad.contiguous(layout);
  at::Tensor grad_x = at::empty_like(x);
  at::Tensor grad_weight = of_channels(x.size(1)).zero_(), grad_bias = of_channels(x.size(1)).zero_();
  if (x.numel()) {
    const Shape shape = shape_of(x);
    with_type(x.scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      const auto deviations = numbers<Compute<T>>(invstd);
      const std::vector<Sums> sums = backward(shape, upstream.const_data_ptr<T>(), x.const_data_ptr<T>(),
                                              affine<Compute<T>>(mean, invstd, weight, bias), deviations,
                                              training, grad_x.mutable_data_ptr<T>());
      for (int64_t c = 0; c < shape.channels; ++c) {
        grad_bias.mutable_data_ptr<double>()[c] = sums[c].first;
        grad_weight.mutable_data_ptr<double>()[c] = sums[c].second * deviations[c];
      }
    });
  }
  const auto type_of = [&](const OptionalTensor& parameter) {
    return parameter ? parameter->scalar_type() : x.scalar_type();
  };
  return {grad_x, grad_weight.to(type_of(weight)), grad_bias.to(type_of(bias))};
}

}  // namespace yolox_ops::CPU_CAPABILITY

namespace yolox_ops {
YOLOX_OPS_REGISTER_CPU(batch_norm_silu)
YOLOX_OPS_REGISTER_CPU(batch_norm_silu_backward)
}  // namespace yolox_ops
