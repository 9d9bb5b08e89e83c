/* Preloaded under ThreadSanitizer: tells it the order that OpenMP's runtime, which is not instrumented, keeps. What
 * comes before a parallel region is before all that its threads do, and that is before what comes after the region.
 * Not instrumented either: the threads read the call before its order is known. */
#include <dlfcn.h>

void __tsan_acquire(void *);
void __tsan_release(void *);

struct call {
  void (*region)(void *);
  void *data;
  char begin, end;
};

static void in_order(void *argument) {
  struct call *call = argument;
  __tsan_acquire(&call->begin);
  call->region(call->data);
  __tsan_release(&call->end);
}

/* What GCC makes of `#pragma omp parallel`, in torch and in the operators. */
void GOMP_parallel(void (*region)(void *), void *data, unsigned threads, unsigned flags) {
  void *runtime = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD); /* the caller's */
  void (*parallel)(void (*)(void *), void *, unsigned, unsigned) = dlsym(runtime, "GOMP_parallel");
  struct call call = {region, data, 0, 0};
  __tsan_release(&call.begin);
  parallel(in_order, &call, threads, flags);
  __tsan_acquire(&call.end);
}
