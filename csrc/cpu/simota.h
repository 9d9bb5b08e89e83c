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

// Natural logarithm of a positive normal number, within 1 ulp; no branches, so that loops over it vectorise,
// and the same bits on every CPU. Method and coefficients of fdlibm's logf (Sun Microsystems, freely
// distributable).
inline float log_normal(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  bits += 0x3f800000 - 0x3f3504f3;
  const float k = static_cast<float>((bits >> 23) - 127);
  bits = (bits & 0x007fffff) + 0x3f3504f3;
  std::memcpy(&x, &bits, 4);
  const float f = x - 1.0F, s = f / (2.0F + f), z = s * s, w = z * z, half_square = 0.5F * f * f;
  const float r = z * (0.66666662693F + w * 0.28498786688F) + w * (0.40000972152F + w * 0.24279078841F);
  return s * (half_square + r) + k * 9.0580006145e-06F - half_square + f + k * 6.9313812256e-01F;
}

// max(log1p(-q), -100); NaN outside [0, 1].
inline float log_miss(float q) {
  const float u = 1.0F - q;
  // log(u) corrected for what 1 - q lost in rounding.
  const float value = log_normal(u > 0 ? u : 1.0F) + ((1.0F - u) - q) / (u > 0 ? u : 1.0F);
  const float clamped = q < 1.0F ? value : -100.0F;
  return q >= 0.0F && q <= 1.0F ? clamped : std::numeric_limits<float>::quiet_NaN();
}

// max(log(q), -100); q is 0 or normal (the square root of a float is).
inline float log_hit(float q) { return q > 0.0F ? log_normal(q) : -100.0F; }

// S of one prior. Sixteen running sums, whatever the vector length: the same bits for every instruction set.
inline float miss_sum(const float* scores, int64_t classes) {
  constexpr int64_t lanes = 16;
  float sums[lanes] = {};
  int64_t c = 0;
  for (; c + lanes <= classes; c += lanes) {
    for (int64_t l = 0; l < lanes; ++l) sums[l] -= log_miss(__builtin_sqrtf(scores[c + l]));
  }
  for (int64_t l = 0; c < classes; ++c, ++l) sums[l] -= log_miss(__builtin_sqrtf(scores[c]));
  for (int64_t width = lanes / 2; width; width /= 2) {
    for (int64_t l = 0; l < width; ++l) sums[l] += sums[l + width];
  }
  return sums[0];
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

// NaN counts as +inf. Never negative, even by rounding: simota_assign prunes by that.
inline float cost_of(float miss_sum, float score, float iou, bool both, Weights weights) {
  const float q = __builtin_sqrtf(score);
  float cls = miss_sum + log_miss(q) - log_hit(q);
  cls = cls < 0 ? 0.0F : cls;
  const float cost = cls * weights.cls + -log_normal(iou + 1e-7F) * weights.iou + (both ? 0.0F : kOutside);
  return cost == cost ? cost : std::numeric_limits<float>::infinity();
}

}  // namespace
}  // namespace yolox_ops::CPU_CAPABILITY
