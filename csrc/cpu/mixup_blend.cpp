// The picture of MMDetection's MixUp in one pass over it: what cv2.resize makes of the partner in float64,
// bit by bit, without the canvas, the enlarged canvas and the four conversions between.
#include <algorithm>
#include <cmath>
#include <vector>

#include "capability.h"
#include "checks.h"

namespace yolox_ops::CPU_CAPABILITY {
namespace {

// For each position along an axis of the enlarged canvas, the two positions of the canvas between which it
// lies, and their weights, as cv2.resize finds them: OpenCV itself rounds to float32, Intel's IPP, if OpenCV
// has it, does not. At an edge both positions are the same, which along y OpenCV weighs all the same.
struct Axis {
  std::vector<int32_t> first, second;
  std::vector<double> keep, take;

  Axis(int64_t from, int64_t to, bool ipp, bool is_y) : first(to), second(to), keep(to), take(to) {
    for (int64_t i = 0; i < to; ++i) {
      double at;
      if (ipp) {
        at = std::fma(i + 0.5, static_cast<double>(from) / to, -0.5);
      } else {
        at = static_cast<float>((i + 0.5) * (1.0 / (static_cast<double>(to) / from)) - 0.5);
      }
      const int64_t below = static_cast<int64_t>(std::floor(at));
      first[i] = std::clamp<int64_t>(below, 0, from - 1);
      second[i] = std::clamp<int64_t>(below + 1, 0, from - 1);
      take[i] = first[i] < second[i] || (is_y && !ipp) ? at - below : 0;
      keep[i] = ipp ? 1 - take[i] : static_cast<float>(1 - take[i]);
    }
  }
};

// Their arithmetic differs too.
template <bool ipp>
inline double between(double a, double b, double keep, double take) {
  return ipp ? std::fma(b - a, take, a) : a * keep + b * take;
}

template <bool ipp>
void blend(uint8_t* out, const uint8_t* image, int64_t height, int64_t width, const at::Tensor& partner,
           at::IntArrayRef canvas, at::IntArrayRef scaled, at::IntArrayRef offset, bool flip, uint8_t pad) {
  const int64_t rows = std::clamp<int64_t>(scaled[0] - offset[0], 0, height);
  const int64_t columns = std::clamp<int64_t>(scaled[1] - offset[1], 0, width);
  const Axis y(canvas[0], scaled[0], ipp, true), x(canvas[1], scaled[1], ipp, false);
  const int64_t values = 3 * columns;
  std::vector<int64_t> first(columns), second(columns);
  std::vector<double> keep(columns), take(columns);
  for (int64_t k = 0; k < columns; ++k) {
    const int64_t position = offset[1] + k, at = flip ? scaled[1] - 1 - position : position;
    first[k] = 3 * x.first[at];
    second[k] = 3 * x.second[at];
    keep[k] = x.keep[at];
    take[k] = x.take[at];
  }
  // Two rows of the canvas at a time, enlarged along x: an even one and an odd one. A pixel is read and
  // written as four values, which fill a register; the next pixel overwrites the fourth, and there is room
  // for the last one's.
  std::vector<double> wide(3 * canvas[1] + 1), even(values + 1), odd(values + 1);
  int64_t even_row = -1, odd_row = -1;
  const auto enlarged = [&](int64_t row) -> const double* {
    std::vector<double>& result = row % 2 ? odd : even;
    int64_t& there = row % 2 ? odd_row : even_row;
    if (there != row) {
      there = row;
      const int64_t painted = row < partner.size(0) ? 3 * partner.size(1) : 0;
      const uint8_t* source = partner.const_data_ptr<uint8_t>() + row * 3 * partner.size(1);
      std::copy(source, source + painted, wide.begin());
      std::fill(wide.begin() + painted, wide.end(), pad);
      double* __restrict__ to = result.data();
      for (int64_t k = 0; k < columns; ++k) {
        const double *left = wide.data() + first[k], *right = wide.data() + second[k];
        for (int c = 0; c < 4; ++c) {
          to[3 * k + c] = between<ipp>(left[c], right[c], keep[k], take[k]);
        }
      }
    }
    return result.data();
  };
  for (int64_t r = 0; r < height; ++r) {
    const uint8_t* __restrict__ mine = image + r * 3 * width;
    uint8_t* __restrict__ result = out + r * 3 * width;
    int64_t k = 0;
    // An offset may be as large as its type.
    const int64_t at = r < rows ? offset[0] + r : 0;
    if (r < rows && ipp && y.first[at] >= partner.size(0)) {  // between equal values IPP is exact
      for (; k < values; ++k) result[k] = static_cast<uint8_t>((mine[k] + pad) >> 1);
    } else if (r < rows) {
      const double *above = enlarged(y.first[at]), *below = enlarged(y.second[at]);
      const double keep_above = y.keep[at], take_below = y.take[at];
      for (; k < values; ++k) {
        const auto level = static_cast<int32_t>(between<ipp>(above[k], below[k], keep_above, take_below));
        result[k] = static_cast<uint8_t>((mine[k] + level) >> 1);
      }
    }
    for (; k < 3 * width; ++k) result[k] = mine[k] >> 1;
  }
}

}  // namespace

at::Tensor mixup_blend(const at::Tensor& image, const at::Tensor& partner, at::IntArrayRef canvas,
                       at::IntArrayRef scaled, at::IntArrayRef offset, bool flip, int64_t pad, bool ipp) {
  check_mixup_blend(image, partner, canvas, scaled, offset, pad);
  const at::Tensor mine = image.contiguous(), other = partner.contiguous();
  at::Tensor out = at::empty_like(mine);
  (ipp ? blend<true> : blend<false>)(out.mutable_data_ptr<uint8_t>(), mine.const_data_ptr<uint8_t>(),
                                     mine.size(0), mine.size(1), other, canvas, scaled, offset, flip,
                                     static_cast<uint8_t>(pad));
  return out;
}

}  // namespace yolox_ops::CPU_CAPABILITY

namespace yolox_ops {
YOLOX_OPS_REGISTER_CPU(mixup_blend)
}  // namespace yolox_ops
