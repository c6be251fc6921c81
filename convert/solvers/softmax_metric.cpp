#include "convert/solvers/softmax_metric.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>

namespace cinch {
namespace {

constexpr int64_t kLanes = 16;     // partial sums, so that the compiler can use vectors
constexpr int64_t kGrain = 32768;  // elements per task

template <typename T>
double dot(const T* a, const T* b, int64_t n) {
  std::array<T, kLanes> lanes{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[static_cast<size_t>(l)] += a[i + l] * b[i + l];
  }
  double sum = 0;
  for (const T lane : lanes) sum += static_cast<double>(lane);
  for (; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

template <typename T>
void rows_in_place(T* error, const T* weight, const T* mean, int64_t rows, int64_t n) {
  at::parallel_for(0, rows, std::max<int64_t>(kGrain / std::max<int64_t>(n, 1), 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* e = error + row * n;
      const T *w = weight + row * n, *m = mean + row * n;
      const T shared = static_cast<T>(dot(m, e, n));
      for (int64_t i = 0; i < n; ++i) e[i] = w[i] * e[i] - m[i] * shared;
    }
  });
}

}  // namespace

at::Tensor softmax_gradient_(at::Tensor error, const at::Tensor& weight, const at::Tensor& mean) {
  TORCH_CHECK(error.sizes() == weight.sizes() && error.sizes() == mean.sizes(), "softmax_gradient_: shapes differ");
  const bool flat = error.is_contiguous() && weight.is_contiguous() && mean.is_contiguous();
  if (!error.is_cpu() || !flat) {
    const at::Tensor shared = (mean * error).sum(-1, /*keepdim=*/true);
    return error.mul_(weight).addcmul_(mean, shared, -1);
  }
  const int64_t n = error.size(-1), rows = n > 0 ? error.numel() / n : 0;
  AT_DISPATCH_FLOATING_TYPES(error.scalar_type(), "softmax_gradient_", [&] {
    rows_in_place(error.mutable_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(),
                  mean.const_data_ptr<scalar_t>(), rows, n);
  });
  return error;
}

}  // namespace cinch
