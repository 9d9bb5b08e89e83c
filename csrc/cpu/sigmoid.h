// The logistic function with the same bits on every instruction set, which neither libm nor ATen gives.
#pragma once
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

// 1 / (1 + e^-x), computed in T (float or double) as torch does: within 4 ulp of what it gives. NaN stays
// NaN.
template <typename T>
inline T sigmoid(T x) {
  constexpr double least = -708.0, largest = 709.78;
  const double negative = -static_cast<double>(x);
  const double bounded = negative < least ? least : negative > largest ? largest : negative;
  const double e = negative > largest ? std::numeric_limits<double>::infinity() : exponential(bounded);
  const T result = T(1) / (T(1) + static_cast<T>(e));
  return x == x ? result : x;
}

}  // namespace
}  // namespace yolox_ops::CPU_CAPABILITY
