// The dispatcher's "cinch" kernel with the prefill kernels' code in the warp emulator, on tensors of the CPU: results
// and gradients against the reference kernel in fp64 on the same rounded numbers.
#include <ATen/ATen.h>

#include <cmath>

#include "attention/kernels/kernels.h"
#include "attention/kernels/prefill/emulated_prefill.h"
#include "attention/kernels/prefill_kernel.h"
#include "core/errors.h"
#include "tests/attention/emulation.h"

namespace cinch {
namespace {

class PrefillAutograd : public warp::EmulationTest {
 protected:
  const PrefillKernel kernel_{&prefill::emulated_prefill_functions()};
};

struct Shape {
  int64_t batch, heads, kv_heads, queries, keys, width, value_width;
  int64_t first_query = 0, first_key = 0, window = 0;
  double softcap = 0;
  bool documents = false;
  at::ScalarType type = at::kBFloat16;
};

AttentionRequest request_of(const Shape& s) {
  at::manual_seed(5);
  // As projections give them: the heads of a token side by side.
  const auto random = [&](int64_t heads, int64_t tokens, int64_t columns) {
    return at::randn({s.batch, tokens, heads, columns}).to(s.type).transpose(1, 2);
  };
  AttentionRequest request;
  request.q = random(s.heads, s.queries, s.width);
  request.k = random(s.kv_heads, s.keys, s.width);
  request.v = random(s.kv_heads, s.keys, s.value_width);
  request.first_query = s.first_query;
  request.first_key = s.first_key;
  request.scale = 1.0 / std::sqrt(static_cast<double>(s.width));
  request.window = s.window;
  request.softcap = s.softcap;
  if (s.documents) {
    // Documents of 7, 8, 9, ... tokens.
    request.documents = at::empty({s.batch, s.queries}, at::kLong);
    for (int64_t b = 0; b < s.batch; ++b) {
      int64_t start = s.first_query, length = 7 + b;
      for (int64_t t = 0; t < s.queries; ++t) {
        if (s.first_query + t - start == length) start = s.first_query + t, ++length;
        request.documents[b][t] = start;
      }
    }
  }
  return request;
}

/// Out and the gradients of q, k and v for a given gradient of out.
struct Results {
  at::Tensor out, d_q, d_k, d_v;
};
Results results_of(const AttentionKernel& kernel, AttentionRequest request, at::ScalarType type,
                   const at::Tensor& d_out) {
  for (at::Tensor* x : {&request.q, &request.k, &request.v}) *x = x->detach().to(type).requires_grad_(true);
  const at::Tensor out = kernel.run(request);
  out.backward(d_out.to(type));
  return {out.detach(), request.q.grad(), request.k.grad(), request.v.grad()};
}

double error_of(const at::Tensor& found, const at::Tensor& wanted) {
  return ((found.to(at::kDouble) - wanted).norm() / wanted.norm()).item<double>();
}

TEST_F(PrefillAutograd, EqualsTheReferenceInFp64) {
  const std::vector<Shape> shapes = {
      {2, 6, 2, 40, 40, 48, 48},                                    // groups of 3
      {1, 7, 1, 33, 33, 40, 40},                                    // one key head
      {1, 2, 2, 40, 40, 192, 128},                                  // values narrower than keys
      {1, 4, 2, 20, 70, 64, 72, 50},                                // goes on from a cache, values wider
      {1, 4, 2, 20, 30, 64, 64, 110, 100, 12},                      // of which old keys are gone
      {2, 2, 1, 50, 50, 64, 64, 0, 0, 9, 0, true},                  // documents and window
      {1, 2, 1, 30, 60, 32, 32, 30, 0, 0, 5, true, at::kHalf},      // documents behind a cache, soft cap
      {1, 3, 1, 40, 40, 256, 256, 0, 0, 11, 20, false, at::kHalf},  // window and soft cap
  };
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(testing::Message() << "D " << shape.width << " Dv " << shape.value_width << " T " << shape.queries);
    const AttentionRequest request = request_of(shape);
    ASSERT_EQ(kernel_.missing(request), "");
    const at::Tensor d_out = at::randn({shape.batch, shape.heads, shape.queries, shape.value_width}).to(shape.type);
    const Results found = results_of(kernel_, request, shape.type, d_out);
    const Results wanted = results_of(reference_kernel(), request, at::kDouble, d_out);
    EXPECT_EQ(found.out.scalar_type(), shape.type);
    EXPECT_LT(error_of(found.out, wanted.out), 5e-3);
    EXPECT_LT(error_of(found.d_q, wanted.d_q), 5e-3);
    EXPECT_LT(error_of(found.d_k, wanted.d_k), 5e-3);
    EXPECT_LT(error_of(found.d_v, wanted.d_v), 5e-3);
  }
}

/// Layouts that the kernels cannot read as they are: transposed columns, odd strides, a gradient of stride 0.
TEST_F(PrefillAutograd, TakesAnyLayout) {
  AttentionRequest request = request_of({1, 4, 2, 20, 20, 40, 40});
  const at::Tensor plain = kernel_.run(request);
  request.q = request.q.transpose(2, 3).contiguous().transpose(2, 3);
  request.k = at::constant_pad_nd(request.k, {3, 2}).narrow(3, 3, 40);
  EXPECT_TRUE(at::equal(kernel_.run(request), plain));

  // In place, but not at a multiple of 16 bytes.
  const at::Tensor shifted = at::empty({request.v.numel() + 1}, request.v.options()).narrow(0, 1, request.v.numel());
  request.v = shifted.copy_(request.v.flatten()).view(request.v.sizes());
  EXPECT_TRUE(at::equal(kernel_.run(request), plain));

  const Results whole = results_of(kernel_, request, at::kBFloat16, at::ones_like(plain));
  const Results expanded = results_of(kernel_, request, at::kBFloat16, at::ones({1}).expand(plain.sizes()));
  EXPECT_TRUE(at::equal(whole.d_q, expanded.d_q));
}

/// Gradients reach what the tensors were made from, and do not mix sequences of a batch.
TEST_F(PrefillAutograd, GradientsFlowThroughViews) {
  const AttentionRequest request = request_of({2, 2, 1, 20, 20, 32, 32});
  const at::Tensor rows = at::randn({2, 20, 4 * 32}).to(at::kBFloat16).requires_grad_(true);
  AttentionRequest part = request;
  const at::Tensor heads = rows.unflatten(2, {4, 32}).transpose(1, 2);
  part.q = heads.narrow(1, 0, 2);
  part.k = heads.narrow(1, 2, 1);
  part.v = heads.narrow(1, 3, 1);
  kernel_.run(part)[1].sum().backward();
  EXPECT_EQ(rows.grad()[0].abs().sum().item<double>(), 0);
  for (int64_t head = 0; head < 4; ++head)
    EXPECT_GT(rows.grad()[1].narrow(1, head * 32, 32).abs().sum().item<double>(), 0) << head;
}

TEST_F(PrefillAutograd, RecordsNothingWithoutGradients) {
  const AttentionRequest request = request_of({1, 2, 1, 5, 5, 32, 32});
  EXPECT_FALSE(kernel_.run(request).requires_grad());
}

TEST_F(PrefillAutograd, SaysWhatItMisses) {
  const AttentionRequest request = request_of({1, 2, 1, 5, 5, 32, 32});
  const auto missing = [&](const auto& change) {
    AttentionRequest changed = request;
    change(changed);
    return kernel_.missing(changed);
  };
  EXPECT_EQ(missing([](AttentionRequest&) {}), "");
  EXPECT_EQ(missing([](AttentionRequest& r) { r.q = r.q.to(at::kFloat); }), "types other than fp16 and bf16");
  EXPECT_EQ(missing([](AttentionRequest& r) { r.v = r.v.to(at::kHalf); }),
            "keys and values of another type than the queries");
  EXPECT_EQ(missing([](AttentionRequest& r) { r.v = r.v.narrow(3, 0, 20); }), "head sizes that are not multiples of 8");
  EXPECT_EQ(missing([](AttentionRequest& r) { r.v = r.v.repeat({1, 1, 1, 9}); }), "heads of more than 256");
  EXPECT_EQ(missing([](AttentionRequest& r) { r.scale = 0; }), "scales that are not positive");
  EXPECT_EQ(missing([](AttentionRequest& r) { r.first_query = int64_t{1} << 30; }), "more than 2^24 tokens");
  EXPECT_EQ(missing([](AttentionRequest& r) { r.q = r.q.narrow(2, 0, 0); }), "no tokens");
  EXPECT_EQ(prefill_kernel().missing(request), "CPU");
}

}  // namespace
}  // namespace cinch
