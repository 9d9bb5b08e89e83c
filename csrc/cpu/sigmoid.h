// The logistic function with the same bits on every instruction set, which neither libm nor ATen gives.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace yolox_ops::CPU_CAPABILITY {
namespace {

// e^x for x in [-708, 709.78], within 1 ulp. Method and coefficients of fdlibm's exp (Sun Microsystems,
// freely distributable), without branches, so that loops vectorise.
inline double exponential(double x) {
  constexpr double shift = 6755399441055744.0;  // 1.5 * 2^52: a sum with it is rounded to a whole number
  const double shifted = x * 1.44269504088896338700 + shift, k = shifted - shift;
  const double high = x - k * 6.93147180369123816490e-01, low = k * 1.90821492927058770002e-10;
  const double r = high - low, t = r * r;
  const double c = r - t * (1.66666666666666019037e-01 +
                            t * (-2.77777777770155933842e-03 +
                                 t * (6.61375632143793436117e-05 +
                                      t * (-1.65339022054652515390e-06 + t * 4.13813679705723846039e-08))));
  double y = 1.0 - ((low - r * c / (2.0 - c)) - high);
  // y * 2^k: the low bits of the shifted number are k, which is added to the exponent.
  uint64_t bits, power;
  std::memcpy(&bits, &y, sizeof y);
  std::memcpy(&power, &shifted, sizeof shifted);
  bits += power << 52;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// e^-x; of a NaN, whatever.
inline double exponential_of_negative(double x) {
  constexpr double least = -708.0, largest = 709.78;
  const double bounded = -x < least ? least : -x > largest ? largest : -x;
  return -x > largest ? std::numeric_limits<double>::infinity() : exponential(bounded);
}

// The same in float, within 1 ulp, or within 2^-13 of itself where that is `rough`. Multiplies and adds in
// one, which has the same bits on every instruction set, but is slow on an x86-64 without AVX2.
template <bool rough = false>
inline float exponential_of_negative(float x) {
  constexpr float least = -87.3F, largest = 88.72283F;
  constexpr float shift = 12582912.0F;  // 1.5 * 2^23
  float bounded = -x < largest ? -x : largest;
  bounded = bounded > least ? bounded : least;
  const float shifted = std::fma(bounded, 1.44269504088896341F, shift), k = shifted - shift;
  float y;
  if constexpr (rough) {  // the polynomial of least relative error
    const float r = std::fma(k, -0.69314718055994531F, bounded);
    y = std::fma(1.6566843e-1F, r, 5.0496328e-1F);
    y = std::fma(std::fma(y, r, 1.0001642F), r, 9.9992806e-1F);
  } else {  // method and coefficients of Cephes' expf (Stephen Moshier, freely distributable)
    const float r = std::fma(k, 2.12194440e-4F, std::fma(k, -0.693359375F, bounded));
    float p = std::fma(1.9875691500e-4F, r, 1.3981999507e-3F);
    p = std::fma(p, r, 8.3334519073e-3F);
    p = std::fma(p, r, 4.1665795894e-2F);
    p = std::fma(p, r, 1.6666665459e-1F);
    p = std::fma(p, r, 5.0000001201e-1F);
    y = std::fma(p, r * r, r) + 1.0F;
  }
  uint32_t bits, power;
  std::memcpy(&bits, &y, sizeof y);
  std::memcpy(&power, &shifted, sizeof shifted);
  bits += power << 23;
  std::memcpy(&y, &bits, sizeof y);
  return -x > largest ? std::numeric_limits<float>::infinity() : y;
}

// 1 / (1 + e^-x), computed in T (float or double) as torch does: within 4 ulp of what it gives. NaN stays
// NaN.
template <typename T>
inline T sigmoid(T x) {
  const T e = static_cast<T>(exponential_of_negative(static_cast<double>(x)));
  const T result = T(1) / (T(1) + e);
  return x == x ? result : x;
}

}  // namespace
}  // namespace yolox_ops::CPU_CAPABILITY
