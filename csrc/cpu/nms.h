// Class-wise greedy suppression, shared by batched_nms and yolox_detect.
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

namespace yolox_ops::CPU_CAPABILITY {
namespace {

// Unsigned keys that ascend where scores descend; NaN first and -0 equal to 0, as torch.sort(descending=True)
// has it.
template <typename T>
auto descending_key(T score) {
  using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  if (score != score) return Key(0);
  score += T(0);
  Key bits;
  std::memcpy(&bits, &score, sizeof(bits));
  constexpr Key sign = Key(1) << (8 * sizeof(Key) - 1);
  return Key(~(bits & sign ? ~bits : bits | sign));
}

// Stable least-significant-digit radix sort: the order of the keys as indices. Digits on which all keys agree
// (the exponents of scores, often) cost only their histogram.
template <typename Key>
std::vector<int32_t> sorted_order(std::vector<Key> keys) {
  constexpr int bits = 11, buckets = 1 << bits;
  const size_t n = keys.size();
  std::vector<int32_t> order(n), next_order(n);
  std::vector<Key> next_keys(n);
  for (size_t i = 0; i < n; ++i) order[i] = static_cast<int32_t>(i);
  for (int shift = 0; shift < static_cast<int>(8 * sizeof(Key)); shift += bits) {
    std::array<int32_t, buckets> start{};
    for (size_t i = 0; i < n; ++i) ++start[(keys[i] >> shift) & (buckets - 1)];
    if (n && start[(keys[0] >> shift) & (buckets - 1)] == static_cast<int32_t>(n)) continue;
    int32_t sum = 0;
    for (auto& count : start) sum += std::exchange(count, sum);
    for (size_t i = 0; i < n; ++i) {
      const int32_t slot = start[(keys[i] >> shift) & (buckets - 1)]++;
      next_keys[slot] = keys[i];
      next_order[slot] = order[i];
    }
    keys.swap(next_keys);
    order.swap(next_order);
  }
  return order;
}

// The largest T that is not above the threshold: iou > threshold in double is then iou > this in T.
template <typename T>
T round_down(double threshold) {
  const T rounded = static_cast<T>(threshold);
  return static_cast<double>(rounded) > threshold
             ? std::nextafter(rounded, -std::numeric_limits<T>::infinity())
             : rounded;
}

// boxes [n, 4], scores [n], labels [n]; indices kept, highest score first. n < 2^31.
template <typename T>
std::vector<int64_t> nms(const T* boxes, const T* scores, const int64_t* labels, int64_t n,
                         double iou_threshold) {
  std::vector<decltype(descending_key(T()))> keys(n);
  for (int64_t i = 0; i < n; ++i) keys[i] = descending_key(scores[i]);
  const std::vector<int32_t> order = sorted_order(std::move(keys));

  // Classes, whatever their numbers, become segments; within one, the order by score stays.
  std::vector<uint64_t> label_keys(n);
  for (int64_t r = 0; r < n; ++r) {
    label_keys[r] = static_cast<uint64_t>(labels[order[r]]);
  }
  std::vector<int32_t> ranks = sorted_order(label_keys);
  std::vector<int32_t> segments{0};
  for (int64_t i = 1; i < n; ++i) {
    if (label_keys[ranks[i]] != label_keys[ranks[i - 1]]) segments.push_back(static_cast<int32_t>(i));
  }
  if (n) segments.push_back(static_cast<int32_t>(n));

  const T threshold = round_down<T>(iou_threshold);
  std::vector<uint8_t> kept(n, 0);  // by rank
  at::parallel_for(
      0, static_cast<int64_t>(segments.size()) - 1, n > 256 ? 1 : 1 << 30, [&](int64_t first, int64_t last) {
        constexpr int64_t lanes = 16;
        std::vector<T> x1, y1, x2, y2, area;
        for (int64_t s = first; s < last; ++s) {
          const int64_t capacity = (segments[s + 1] - segments[s] + lanes - 1) / lanes * lanes;
          // Empty slots hold a box that overlaps nothing, so that blocks need no tail.
          x1.assign(capacity, 0), y1.assign(capacity, 0), x2.assign(capacity, 0), y2.assign(capacity, 0);
          area.assign(capacity, 1);
          int64_t count = 0;
          for (int64_t i = segments[s]; i < segments[s + 1]; ++i) {
            const T* box = boxes + 4 * static_cast<int64_t>(order[ranks[i]]);
            const T bx1 = box[0], by1 = box[1], bx2 = box[2], by2 = box[3], barea = (bx2 - bx1) * (by2 - by1);
            int suppressed = 0;
            for (int64_t block = 0; block < count && !suppressed; block += lanes) {
              for (int64_t k = block; k < block + lanes; ++k) {
                const T left = x1[k] < bx1 ? bx1 : x1[k], top = y1[k] < by1 ? by1 : y1[k];
                const T right = bx2 < x2[k] ? bx2 : x2[k], bottom = by2 < y2[k] ? by2 : y2[k];
                const T w = right - left > 0 ? right - left : T(0),
                        h = bottom - top > 0 ? bottom - top : T(0);
                const T inter = w * h;
                suppressed |= (inter / (area[k] + barea - inter) > threshold) & (k < count);
              }
            }
            if (suppressed) continue;
            x1[count] = bx1, y1[count] = by1, x2[count] = bx2, y2[count] = by2, area[count] = barea;
            ++count;
            kept[ranks[i]] = 1;
          }
        }
      });
  std::vector<int64_t> keep;
  for (int64_t r = 0; r < n; ++r) {
    if (kept[r]) keep.push_back(order[r]);
  }
  return keep;
}

}  // namespace
}  // namespace yolox_ops::CPU_CAPABILITY
