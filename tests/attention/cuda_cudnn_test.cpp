// The cuDNN kernel on a CUDA device against the reference in fp64: results, gradients, layouts, determinism.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "attention/kernels/cudnn/cudnn_library.h"
#include "attention/kernels/kernels.h"
#include "core/errors.h"
#include "tests/support/cuda_device.h"

namespace cinch {
namespace {

struct Shape {
  int64_t batch, heads, kv_heads, queries, keys, key_width, value_width, window;
};

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> list = {
      {1, 8, 2, 512, 512, 128, 128, 0},  {2, 9, 3, 300, 300, 64, 64, 0},  {2, 16, 1, 257, 257, 64, 64, 0},
      {1, 4, 4, 256, 256, 192, 128, 0},  {1, 8, 2, 384, 384, 64, 128, 0}, {2, 8, 2, 300, 300, 128, 128, 50},
      {1, 8, 2, 513, 513, 64, 64, 1},    {2, 8, 2, 100, 300, 128, 64, 0}, {2, 8, 2, 100, 300, 128, 128, 50},
      {2, 8, 2, 127, 1025, 64, 64, 200}, {3, 12, 4, 65, 65, 72, 40, 0},   {1, 2, 1, 192, 192, 256, 256, 0},
      {2, 8, 2, 2, 2, 64, 64, 0},
  };
  return list;
}

AttentionRequest request_of(const Shape& shape, at::ScalarType type, at::Device device) {
  at::manual_seed(11);
  const auto random = [&](int64_t heads, int64_t tokens, int64_t width) {
    // Rounded once, so that every type and device computes on the same numbers; heads of a token side by side.
    const at::Tensor values = at::randn({shape.batch, tokens, heads, width}).to(at::kBFloat16);
    return values.to(type).to(device).transpose(1, 2).requires_grad_(true);
  };
  AttentionRequest request;
  request.q = random(shape.heads, shape.queries, shape.key_width);
  request.k = random(shape.kv_heads, shape.keys, shape.key_width);
  request.v = random(shape.kv_heads, shape.keys, shape.value_width);
  request.first_key = 5;
  request.first_query = 5 + shape.keys - shape.queries;
  request.scale = 1.0 / std::sqrt(static_cast<double>(shape.key_width));
  request.window = shape.window;
  return request;
}

/// Result and gradients of q, k and v.
std::vector<at::Tensor> passes(const AttentionRequest& request, const AttentionKernel& kernel) {
  const at::Tensor out = kernel.run(request);
  at::manual_seed(12);
  out.backward(at::randn(out.sizes()).to(at::kBFloat16).to(out.options()));
  std::vector<at::Tensor> results = {out.detach()};
  for (const at::Tensor& x : {request.q, request.k, request.v}) results.push_back(x.grad());
  return results;
}

double distance(const at::Tensor& found, const at::Tensor& expected) {
  const at::Tensor wide = found.to(at::kCPU, at::kDouble);
  return ((wide - expected).norm() / expected.norm()).item<double>();
}

class CudaCudnn : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    try {
      cudnn_version();
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
  void TearDown() override { at::globalContext().setDeterministicAlgorithms(false, false); }
};

TEST_F(CudaCudnn, ResultsAndGradientsEqualTheReference) {
  int ran = 0;
  for (const Shape& shape : shapes()) {
    const auto expected = passes(request_of(shape, at::kDouble, at::kCPU), reference_kernel());
    for (const auto& [type, tolerance] : {std::pair{at::kBFloat16, 1e-2}, {at::kHalf, 2e-3}}) {
      for (const bool deterministic : {false, true}) {
        at::globalContext().setDeterministicAlgorithms(deterministic, false);
        const AttentionRequest request = request_of(shape, type, at::kCUDA);
        if (const std::string missing = cudnn_kernel().missing(request); !missing.empty()) {
          std::printf("shape %td: %s\n", &shape - shapes().data(), missing.c_str());
          continue;
        }
        ++ran;
        const auto found = passes(request, cudnn_kernel());
        EXPECT_EQ(cudnn_kernel().missing(request), "");  // a refused plan would be known by now
        for (size_t i = 0; i < found.size(); ++i) {
          EXPECT_EQ(found[i].sizes(), expected[i].sizes());
          EXPECT_LT(distance(found[i], expected[i]), tolerance)
              << at::toString(type) << ", shape " << &shape - shapes().data() << ", output " << i << ", deterministic "
              << deterministic;
        }
      }
    }
  }
  EXPECT_GT(ran, 0);
}

// Slices of wider rows, expanded heads, tokens inside of heads, a gradient that is expanded: what must be copied is.
TEST_F(CudaCudnn, LayoutsMakeNoDifference) {
  const Shape shape{2, 8, 2, 256, 256, 64, 64, 0};
  const auto expected = passes(request_of(shape, at::kDouble, at::kCPU), reference_kernel());
  AttentionRequest request = request_of(shape, at::kBFloat16, at::kCUDA);
  const at::Tensor rows = at::cat({request.k, request.v}, -1).detach();
  const at::Tensor odd = at::empty({2, 8, 256, 67}, request.q.options().requires_grad(false)).narrow(3, 3, 64);
  request.q = odd.copy_(request.q.detach()).requires_grad_(true);
  request.k = rows.narrow(3, 0, 64).requires_grad_(true);
  request.v = rows.narrow(3, 64, 64).detach().requires_grad_(true);
  const auto found = passes(request, cudnn_kernel());
  for (size_t i = 0; i < found.size(); ++i) EXPECT_LT(distance(found[i], expected[i]), 1e-2) << i;

  const AttentionRequest summed = request_of(shape, at::kBFloat16, at::kCUDA);
  cudnn_kernel().run(summed).sum().backward();  // a gradient of strides 0
  const AttentionRequest exact = request_of(shape, at::kDouble, at::kCPU);
  reference_kernel().run(exact).sum().backward();
  EXPECT_LT(distance(summed.v.grad(), exact.v.grad()), 1e-2);
}

TEST_F(CudaCudnn, DeterministicRunsGiveTheSameBits) {
  at::globalContext().setDeterministicAlgorithms(true, false);
  const Shape shape{2, 8, 2, 1024, 1024, 128, 128, 0};
  const auto first = passes(request_of(shape, at::kBFloat16, at::kCUDA), cudnn_kernel());
  for (int run = 0; run < 5; ++run) {
    const auto again = passes(request_of(shape, at::kBFloat16, at::kCUDA), cudnn_kernel());
    for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(at::equal(first[i], again[i])) << "output " << i;
  }
}

// Long prompts without gradients, of which ATen's attention knows the same result.
TEST_F(CudaCudnn, LongPrompts) {
  const at::NoGradGuard no_gradients;
  AttentionRequest request = request_of({1, 8, 2, 8192, 8192, 64, 64, 0}, at::kBFloat16, at::kCUDA);
  EXPECT_EQ(cudnn_kernel().missing(request), "");
  EXPECT_LT(distance(cudnn_kernel().run(request), sdpa_kernel().run(request).to(at::kCPU, at::kDouble)), 1e-2);
  request = request_of({1, 8, 2, 256, 256, 64, 64, 0}, at::kBFloat16, at::kCUDA);
  EXPECT_NE(cudnn_kernel().leaves(request).find("prompts of less than"), std::string::npos);
}

TEST_F(CudaCudnn, DeclinesWhatItDoesNotCover) {
  const auto missing = [](const std::function<void(AttentionRequest&)>& change) {
    AttentionRequest request = request_of({1, 8, 2, 256, 256, 64, 64, 0}, at::kBFloat16, at::kCUDA);
    change(request);
    return cudnn_kernel().missing(request);
  };
  EXPECT_EQ(missing([](AttentionRequest&) {}), "");
  EXPECT_EQ(missing([](AttentionRequest& it) { it.softcap = 30; }), "soft cap");
  EXPECT_EQ(missing([](AttentionRequest& it) { it.documents = at::zeros({1, 256}, at::kLong); }), "documents");
  EXPECT_EQ(missing([](AttentionRequest& it) { it.first_query -= 1; }), "keys behind the last query");
  EXPECT_EQ(missing([](AttentionRequest& it) { it.q = it.q.to(at::kFloat); }), "types other than fp16 and bf16");
  at::globalContext().setDeterministicAlgorithms(true, false);
  const AttentionRequest wide = request_of({1, 64, 8, 16384, 16384, 64, 64, 0}, at::kBFloat16, at::kCUDA);
  EXPECT_EQ(cudnn_kernel().missing(wide), "a workspace of less than 4 GiB for this many tokens, deterministic");
}

TEST_F(CudaCudnn, ThreadsShareThePlans) {
  const Shape shape{1, 8, 2, 256, 256, 64, 64, 0};
  const auto expected = passes(request_of(shape, at::kBFloat16, at::kCUDA), cudnn_kernel());
  const AttentionRequest request = request_of(shape, at::kBFloat16, at::kCUDA);
  std::vector<at::Tensor> found(4);
  std::vector<std::thread> threads;
  for (at::Tensor& out : found) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) out = cudnn_kernel().run(request).detach();
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const at::Tensor& out : found) EXPECT_TRUE(at::equal(out, expected[0]));
}

// A plan that was saved and loaded again computes the same.
TEST_F(CudaCudnn, SavedPlansRun) {
  const CudnnFunctions& functions = cudnn_functions();
  std::array<char, 1024> reason{};
  CinchCudnnTarget target{0, 0, nullptr};
  ASSERT_EQ(functions.capability(0, &target.compute_capability, reason.data(), reason.size()), 0) << reason.data();
  CinchCudnnShape shape;
  std::memset(&shape, 0, sizeof shape);
  shape.batch = 1, shape.heads = shape.kv_heads = 4, shape.queries = shape.keys = 128;
  shape.key_width = shape.value_width = 64;
  shape.q = shape.k = shape.v = shape.out = {4 * 128 * 64, 128 * 64, 64};
  shape.scale = 0.125F;
  const auto options = at::TensorOptions(at::kBFloat16).device(at::kCUDA, 0);
  const at::Tensor q = at::randn({1, 4, 128, 64}, options), out = at::empty_like(q), again = at::empty_like(q);
  const auto run = [&](const at::Tensor& to) {
    CinchCudnnPlan plan{};
    ASSERT_EQ(functions.plan(&shape, &target, 1, &plan, reason.data(), reason.size()), 0) << reason.data();
    const at::Tensor workspace = at::empty({static_cast<int64_t>(plan.workspace_bytes) + 1}, options.dtype(at::kByte));
    CinchCudnnTensors tensors{};
    tensors.q = tensors.k = tensors.v = q.const_data_ptr();
    tensors.out = to.mutable_data_ptr(), tensors.workspace = workspace.mutable_data_ptr();
    ASSERT_EQ(functions.run(&shape, &target, &tensors, nullptr, reason.data(), reason.size()), 0) << reason.data();
    EXPECT_GT(to.abs().sum().item<double>(), 0);  // waits for it
  };
  run(out);
  uint64_t size = 0;
  functions.save(&shape, &target, nullptr, 0, &size, reason.data(), reason.size());
  std::vector<char> bytes(size);
  ASSERT_EQ(functions.save(&shape, &target, bytes.data(), size, &size, reason.data(), reason.size()), 0);
  ASSERT_EQ(functions.load(&shape, &target, bytes.data(), size, reason.data(), reason.size()), 0) << reason.data();
  run(again);
  EXPECT_TRUE(at::equal(out, again));
}

}  // namespace
}  // namespace cinch
