// The cost of giving a prior to a gt, mmdet's SimOTAAssigner: shared by simota_cost and simota_assign.
//
// With q = sqrt(score), the sum over classes of BCE(q_c, onehot(label)) is S + log1p(-q_label) -
// log(q_label), where S = -sum_c log1p(-q_c) depends on the prior alone: C + 2G logs a prior instead of 2GC.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>

namespace yolox_ops::CPU_CAPABILITY {
namespace {

constexpr float kOutside = 100000.0F;  // added where a prior is not in the box and the centre region of a gt

// Sixteen floats at once, in the compiler's vector extension (GCC and Clang): loops with this many selections
// do not vectorise by themselves. Always sixteen, so that every instruction set gives the same bits.
constexpr int64_t kLanes = 16;
using Lanes = float __attribute__((vector_size(4 * kLanes)));
using IntLanes = int32_t __attribute__((vector_size(4 * kLanes)));

inline float select(bool mask, float yes, float no) { return mask ? yes : no; }
inline Lanes select(IntLanes mask, Lanes yes, Lanes no) { return mask ? yes : no; }
inline float to_float(int32_t value) { return static_cast<float>(value); }
inline Lanes to_float(IntLanes value) { return __builtin_convertvector(value, Lanes); }
inline int32_t to_bits(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline IntLanes to_bits(Lanes value) { return reinterpret_cast<IntLanes>(value); }
inline float from_bits(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline Lanes from_bits(IntLanes bits) { return reinterpret_cast<Lanes>(bits); }
inline float square_root(float value) { return __builtin_sqrtf(value); }
inline Lanes square_root(Lanes value) {
  float lanes[kLanes];
  std::memcpy(lanes, &value, sizeof value);
  for (int64_t l = 0; l < kLanes; ++l) lanes[l] = __builtin_sqrtf(lanes[l]);
  std::memcpy(&value, lanes, sizeof value);
  return value;
}
inline Lanes load(const float* from) {
  Lanes value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// The following work on float and on Lanes.

// Natural logarithm of a positive normal number, within 1 ulp, and the same bits on every CPU. Method and
// coefficients of fdlibm's logf (Sun Microsystems, freely distributable).
template <typename T>
T log_normal(T x) {
  auto bits = to_bits(x) + (0x3f800000 - 0x3f3504f3);
  const T k = to_float((bits >> 23) - 127);
  const T f = from_bits((bits & 0x007fffff) + 0x3f3504f3) - 1.0F;
  const T s = f / (2.0F + f), z = s * s, w = z * z, half_square = 0.5F * f * f;
  const T r = z * (0.66666662693F + w * 0.28498786688F) + w * (0.40000972152F + w * 0.24279078841F);
  return s * (half_square + r) + k * 9.0580006145e-06F - half_square + f + k * 6.9313812256e-01F;
}

// 1 - q, which is 0 or normal, split for max(log1p(-q), -100): a number to take the log of, and a term to
// add, which is what 1 - q lost in rounding, -100 for q = 1, NaN outside [0, 1].
template <typename T>
struct Miss {
  T factor, term;
  explicit Miss(T q) {
    const T u = 1.0F - q;
    factor = select(u > 0.0F, u, T{} + 1.0F);
    const T lost = select(q < 1.0F, ((1.0F - u) - q) / factor, T{} - 100.0F);
    term = select((q >= 0.0F) & (q <= 1.0F), lost, T{} + std::numeric_limits<float>::quiet_NaN());
  }
};

// max(log(q), -100); q is 0 or normal (the square root of a float is).
template <typename T>
T log_hit(T q) {
  return select(q > 0.0F, log_normal(select(q > 0.0F, q, T{} + 1.0F)), T{} - 100.0F);
}

// S of one prior. The logs of up to five classes are one log of a product: factors are at least 2^-24, so the
// product stays normal.
inline float miss_sum(const float* scores, int64_t classes) {
  constexpr int64_t group = 5;
  Lanes sums{};
  for (int64_t c = 0; c < classes;) {
    Lanes product = Lanes{} + 1.0F;
    for (int64_t k = 0; k < group && c < classes; ++k, c += kLanes) {
      float rest[kLanes] = {};  // a score of 0 adds nothing
      if (classes - c < kLanes) std::memcpy(rest, scores + c, 4 * (classes - c));
      const Miss<Lanes> miss(square_root(load(classes - c < kLanes ? rest : scores + c)));
      product *= miss.factor;
      sums -= miss.term;
    }
    sums -= log_normal(product);
  }
  float values[kLanes];
  std::memcpy(values, &sums, sizeof sums);
  for (int64_t width = kLanes / 2; width; width /= 2) {
    for (int64_t l = 0; l < width; ++l) values[l] += values[l + width];
  }
  return values[0];
}

struct Gt {
  float x1, y1, x2, y2, cx, cy, area;
  explicit Gt(const float* box)
      : x1(box[0]),
        y1(box[1]),
        x2(box[2]),
        y2(box[3]),
        cx((x1 + x2) / 2),
        cy((y1 + y2) / 2),
        area((x2 - x1) * (y2 - y1)) {}
};

struct Prior {
  float x, y, reach_x, reach_y;  // centre; centre_radius times the strides
};

// Strict, so that a NaN is outside. Bitwise, so that loops vectorise.
inline bool in_box(const Prior& p, const Gt& g) {
  return (p.x - g.x1 > 0) & (p.y - g.y1 > 0) & (g.x2 - p.x > 0) & (g.y2 - p.y > 0);
}
inline bool in_center(const Prior& p, const Gt& g) {
  return (p.x - (g.cx - p.reach_x) > 0) & (p.y - (g.cy - p.reach_y) > 0) & (g.cx + p.reach_x - p.x > 0) &
         (g.cy + p.reach_y - p.y > 0);
}

// IoU with mmdet's eps of 1e-6; NaN counts as 0.
inline float iou_of(float x1, float y1, float x2, float y2, float area, const Gt& g) {
  const float left = x1 > g.x1 ? x1 : g.x1, top = y1 > g.y1 ? y1 : g.y1;
  const float right = x2 < g.x2 ? x2 : g.x2, bottom = y2 < g.y2 ? y2 : g.y2;
  const float w = right - left > 0 ? right - left : 0.0F, h = bottom - top > 0 ? bottom - top : 0.0F;
  const float inter = w * h, sum = area + g.area - inter;
  const float iou = inter / (sum > 1e-6F || sum != sum ? sum : 1e-6F);
  // A comparison with NaN lets the other side through above; a NaN coordinate shows in the area.
  return iou > 0 ? iou : 0.0F;
}

struct Weights {
  float cls, iou;
};

// `outside` is 0 or kOutside. NaN counts as +inf. The class part is never negative, even by rounding:
// simota_assign prunes by that.
template <typename T>
T cost_of(T miss_sum, T score, T iou, T outside, Weights weights) {
  const T q = square_root(score);
  const Miss<T> miss(q);
  const T cls = miss_sum + (log_normal(miss.factor) + miss.term) - log_hit(q);
  const T cost =
      select(cls < 0.0F, T{}, cls) * weights.cls + -log_normal(iou + 1e-7F) * weights.iou + outside;
  return select(cost == cost, cost, T{} + std::numeric_limits<float>::infinity());
}

}  // namespace
}  // namespace yolox_ops::CPU_CAPABILITY
