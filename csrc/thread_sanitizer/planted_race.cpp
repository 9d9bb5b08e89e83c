// An operator whose threads race, which ThreadSanitizer has to find: else its silence about the others means
// nothing.
#include <ATen/Parallel.h>
#include <torch/library.h>

namespace yolox_ops {
namespace {

int64_t planted_race(int64_t count) {
  int64_t sum = 0;
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sum += i;
  });
  return sum;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(yolox_ops, m) { m.def("planted_race", &planted_race); }

}  // namespace yolox_ops
