// The kernels of attention/kernels on a CUDA device against the reference in fp64.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "attention/attention_kernel.h"
#include "attention/kernels/kernels.h"
#include "tests/support/cuda_device.h"

namespace cinch {
namespace {

class CudaAttention : public CudaTest {};

struct Shape {
  int64_t batch, heads, kv_heads, width, value_width, tokens, window;
  bool documents;
};

/// Documents of 1, 2, 3, ... tokens, from another place in each sequence.
at::Tensor growing_documents(int64_t batch, int64_t tokens) {
  at::Tensor starts = at::empty({batch, tokens}, at::kLong);
  for (int64_t b = 0; b < batch; ++b) {
    int64_t length = 1 + b, start = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      if (t - start == length) start = t, ++length;
      starts[b][t] = start;
    }
  }
  return starts;
}

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> list = {
      {2, 9, 3, 64, 64, 300, 0, false},   // 9 heads of 3
      {2, 9, 3, 64, 64, 300, 0, true},    // documents
      {1, 8, 1, 48, 48, 257, 0, true},    // one key head
      {2, 6, 6, 100, 64, 130, 0, true},   // values narrower than keys, of a width that kernels do not have
      {1, 6, 2, 64, 96, 130, 0, true},    // and wider
      {2, 4, 2, 64, 64, 300, 50, false},  // window
      {2, 4, 2, 64, 64, 300, 50, true},   // window and documents
      {1, 5, 1, 264, 200, 70, 0, true},   // wider than flash attention
  };
  return list;
}

AttentionRequest request_of(const Shape& shape, at::ScalarType type, at::Device device) {
  at::manual_seed(11);
  const auto random = [&](int64_t heads, int64_t width) {
    // Rounded once, so that every type and device computes on the same numbers.
    const at::Tensor values = at::randn({shape.batch, heads, shape.tokens, width}).to(at::kBFloat16);
    return values.to(type).to(device).requires_grad_(true);
  };
  AttentionRequest request;
  request.q = random(shape.heads, shape.width);
  request.k = random(shape.kv_heads, shape.width);
  request.v = random(shape.kv_heads, shape.value_width);
  request.scale = 1.0 / std::sqrt(static_cast<double>(shape.width));
  request.window = shape.window;
  if (shape.documents) request.documents = growing_documents(shape.batch, shape.tokens);
  return request;
}

/// Result and gradients of q, k and v.
std::vector<at::Tensor> passes(const AttentionRequest& request, const AttentionKernel* kernel) {
  const at::Tensor out = kernel == nullptr ? attend(request) : kernel->run(request);
  at::manual_seed(12);
  out.backward(at::randn(out.sizes()).to(at::kBFloat16).to(out.options()));
  std::vector<at::Tensor> results = {out.detach()};
  for (const at::Tensor& x : {request.q, request.k, request.v}) results.push_back(x.grad());
  for (at::Tensor& x : results) x = x.to(at::kCPU, at::kDouble);
  return results;
}

TEST_F(CudaAttention, KernelsAndGradientsEqualTheReference) {
  for (const Shape& shape : shapes()) {
    const auto expected = passes(request_of(shape, at::kDouble, at::kCPU), attention_kernels().back());
    for (const auto& [type, tolerance] : {std::pair{at::kDouble, 1e-12}, {at::kFloat, 1e-5}, {at::kBFloat16, 1e-2}}) {
      const auto found = passes(request_of(shape, type, at::kCUDA), nullptr);
      for (size_t i = 0; i < found.size(); ++i) {
        const double off = ((found[i] - expected[i]).norm() / expected[i].norm()).item<double>();
        EXPECT_LT(off, tolerance) << at::toString(type) << ", shape " << &shape - shapes().data() << ", output " << i;
      }
    }
  }
}

TEST_F(CudaAttention, DocumentsAndWindowsOfHalfTypesTakeFlash) {
  for (const Shape& shape : shapes()) {
    const KernelVerdict first = explain_dispatch(request_of(shape, at::kBFloat16, at::kCUDA)).front();
    const bool covered = shape.width <= 256 && (shape.documents || shape.window > 0);
    EXPECT_EQ(first.runs, covered) << first.kernel << " " << first.why_not;
  }
}

/// Of whatever the others take before them, too, and of what only they take: soft caps.
TEST_F(CudaAttention, OurOwnKernelsEqualTheReference) {
  for (const Shape& shape : shapes()) {
    for (const double softcap : {0.0, 5.0}) {
      const auto capped = [&](at::ScalarType type, at::Device device) {
        AttentionRequest request = request_of(shape, type, device);
        request.softcap = softcap;
        return request;
      };
      const AttentionRequest request = capped(at::kBFloat16, at::kCUDA);
      if (shape.width % 8 != 0 || shape.width > 256) {
        EXPECT_NE(prefill_kernel().missing(request), "");
        continue;
      }
      ASSERT_EQ(prefill_kernel().missing(request), "");
      const auto expected = passes(capped(at::kDouble, at::kCPU), attention_kernels().back());
      const auto found = passes(request, &prefill_kernel()),
                 again = passes(capped(at::kBFloat16, at::kCUDA), &prefill_kernel());
      for (size_t i = 0; i < found.size(); ++i) {
        const double off = ((found[i] - expected[i]).norm() / expected[i].norm()).item<double>();
        EXPECT_LT(off, 5e-3) << "shape " << &shape - shapes().data() << ", soft cap " << softcap << ", output " << i;
        EXPECT_TRUE(at::equal(found[i], again[i])) << "runs differ";
      }
    }
  }
}

}  // namespace
}  // namespace cinch
