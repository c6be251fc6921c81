#include "attention/attention_kernel.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <cmath>
#include <map>

#include "attention/kernels/kernels.h"
#include "core/errors.h"

namespace cinch {
namespace {

struct Shape {
  int64_t batch, heads, kv_heads, head_dim, queries, keys;
  int64_t first_query, first_key, window;
  double softcap;
  int64_t value_dim = 0;  // 0: head_dim
  bool documents = false;
};

/// Documents of 3, 2, 4, 3, 2, ... tokens, other ones in each sequence.
at::Tensor some_documents(int64_t batch, int64_t first, int64_t tokens) {
  at::Tensor starts = at::empty({batch, tokens}, at::kLong);
  for (int64_t b = 0; b < batch; ++b) {
    int64_t start = 0;
    for (int64_t t = 0; t < first + tokens; ++t) {
      if ((t + b) % 9 == 3 || (t + b) % 9 == 5 || (t + b) % 9 == 0) start = t;
      if (t >= first) starts[b][t - first] = start;
    }
  }
  return starts;
}

AttentionRequest request_of(const Shape& shape, at::ScalarType dtype) {
  at::manual_seed(7);
  AttentionRequest request;
  request.q = at::randn({shape.batch, shape.heads, shape.queries, shape.head_dim}, at::kDouble).to(dtype);
  request.k = at::randn({shape.batch, shape.kv_heads, shape.keys, shape.head_dim}, at::kDouble).to(dtype);
  const int64_t value_dim = shape.value_dim > 0 ? shape.value_dim : shape.head_dim;
  request.v = at::randn({shape.batch, shape.kv_heads, shape.keys, value_dim}, at::kDouble).to(dtype);
  request.first_query = shape.first_query;
  request.first_key = shape.first_key;
  request.scale = 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
  request.window = shape.window;
  request.softcap = shape.softcap;
  if (shape.documents) request.documents = some_documents(shape.batch, shape.first_query, shape.queries);
  return request;
}

/// Every number by its own loop, in double.
at::Tensor by_hand(const AttentionRequest& request) {
  const at::Tensor q = request.q.to(at::kDouble), k = request.k.to(at::kDouble), v = request.v.to(at::kDouble);
  const int64_t group = q.size(1) / k.size(1);
  at::Tensor out = at::zeros({q.size(0), q.size(1), q.size(2), v.size(3)}, at::kDouble);
  for (int64_t b = 0; b < q.size(0); ++b) {
    for (int64_t h = 0; h < q.size(1); ++h) {
      for (int64_t i = 0; i < q.size(2); ++i) {
        const int64_t t = request.first_query + i;
        double total = 0;
        at::Tensor sum = at::zeros({v.size(3)}, at::kDouble);
        for (int64_t j = 0; j < k.size(2); ++j) {
          const int64_t s = request.first_key + j;
          if (s > t || (request.window > 0 && t - s >= request.window)) continue;
          if (request.documents.defined() && s < request.documents[b][i].item<int64_t>()) continue;
          double score = q[b][h][i].dot(k[b][h / group][j]).item<double>() * request.scale;
          if (request.softcap > 0) score = request.softcap * std::tanh(score / request.softcap);
          total += std::exp(score);
          sum += std::exp(score) * v[b][h / group][j];
        }
        out[b][h][i] = sum / total;
      }
    }
  }
  return out;
}

const std::vector<Shape>& small_shapes() {
  static const std::vector<Shape> shapes = {
      {2, 9, 3, 16, 7, 7, 0, 0, 0, 0},                // 9 heads of 3, causal
      {1, 6, 6, 48, 5, 5, 0, 0, 3, 0},                // multi-head, window
      {1, 6, 1, 8, 4, 9, 5, 0, 0, 0},                 // multi-query, continues a cache
      {1, 4, 2, 10, 1, 6, 5, 0, 0, 0},                // one new token
      {1, 4, 2, 10, 1, 6, 9, 4, 4, 0},                // one new token, older ones dropped and beyond the window
      {2, 6, 2, 12, 3, 8, 12, 7, 5, 0},               // a chunk with a window
      {1, 6, 2, 16, 6, 6, 0, 0, 4, 5.0},              // soft cap and window
      {1, 6, 2, 16, 2, 9, 7, 0, 0, 30.0},             // soft cap, continues a cache
      {2, 9, 3, 17, 7, 7, 0, 0, 0, 0, 11},            // narrower values
      {1, 6, 6, 5, 4, 9, 5, 0, 3, 0, 12},             // wider values, window, continues a cache
      {1, 6, 1, 16, 1, 6, 5, 0, 0, 0, 3},             // narrower values, one new token
      {1, 6, 2, 16, 6, 6, 0, 0, 4, 5.0, 10},          // narrower values, soft cap and window
      {2, 9, 3, 16, 11, 11, 0, 0, 0, 0, 0, true},     // documents
      {2, 9, 3, 16, 11, 11, 7, 7, 0, 0, 11, true},    // documents, narrower values, not from position 0
      {3, 4, 2, 16, 12, 12, 0, 0, 3, 0, 20, true},    // documents, wider values, window
      {2, 4, 2, 16, 12, 12, 0, 0, 3, 20.0, 0, true},  // documents, window, soft cap
      {2, 6, 1, 8, 5, 11, 6, 0, 0, 0, 0, true},       // documents that go on from a cache
  };
  return shapes;
}

TEST(AttentionKernel, EveryKernelEqualsTheFormula) {
  for (const auto& [dtype, tolerance] : {std::pair{at::kDouble, 1e-12}, {at::kFloat, 2e-6}, {at::kBFloat16, 3e-2}}) {
    for (const Shape& shape : small_shapes()) {
      const AttentionRequest request = request_of(shape, dtype);
      const at::Tensor expected = by_hand(request);
      for (const AttentionKernel* kernel : attention_kernels()) {
        if (!kernel->missing(request).empty()) continue;
        const at::Tensor found = kernel->run(request);
        EXPECT_EQ(found.scalar_type(), dtype);
        EXPECT_LT((found.to(at::kDouble) - expected).abs().max().item<double>(), tolerance) << kernel->name();
      }
    }
  }
}

// Longer than the blocks of queries that bound memory, so that joining them is tested too.
TEST(AttentionKernel, KernelsAgreeOnLongSequences) {
  for (const Shape& shape : {Shape{1, 3, 1, 16, 1100, 1100, 0, 0, 0, 0}, Shape{1, 3, 1, 16, 1100, 1100, 0, 0, 300, 0},
                             Shape{1, 2, 2, 8, 700, 900, 300, 100, 250, 0}}) {
    const AttentionRequest request = request_of(shape, at::kDouble);
    const at::Tensor reference = attention_kernels().back()->run(request);
    const at::Tensor whole =
        at::matmul(attention_probabilities(request), request.v.repeat_interleave(shape.heads / shape.kv_heads, 1));
    EXPECT_LT((reference - whole).abs().max().item<double>(), 1e-12);
    EXPECT_LT((attend(request) - whole).abs().max().item<double>(), 1e-12);
  }
}

// Latent attention's case: no copy of the values is made, whatever part of a longer cache the keys are.
TEST(AttentionKernel, ValuesMayBeTheFirstColumnsOfTheKeys) {
  for (const Shape& shape : {Shape{2, 9, 1, 24, 5, 8, 3, 0, 0, 0}, Shape{1, 6, 2, 24, 1, 8, 7, 0, 4, 0},
                             Shape{1, 6, 1, 24, 8, 8, 0, 0, 3, 9.0}}) {
    AttentionRequest request = request_of(shape, at::kDouble);
    const at::Tensor cache = at::randn({shape.batch, shape.kv_heads, shape.keys + 5, shape.head_dim + 3}, at::kDouble);
    request.k = cache.narrow(2, 2, shape.keys).narrow(3, 0, shape.head_dim);
    request.v = request.k.narrow(3, 0, 10);
    const at::Tensor expected = by_hand(request);
    for (const AttentionKernel* kernel : attention_kernels()) {
      if (!kernel->missing(request).empty()) continue;
      EXPECT_LT((kernel->run(request) - expected).abs().max().item<double>(), 1e-12) << kernel->name();
    }
    request.v = request.k.narrow(3, 4, 10);  // not the first ones
    EXPECT_LT((attend(request) - by_hand(request)).abs().max().item<double>(), 1e-12);
  }
}

TEST(AttentionKernel, ProbabilitiesSumToOneOverVisibleKeys) {
  const AttentionRequest request = request_of({1, 4, 2, 10, 5, 8, 6, 3, 3, 0}, at::kDouble);
  const at::Tensor p = attention_probabilities(request);
  EXPECT_EQ(p.sizes(), (std::vector<int64_t>{1, 4, 5, 8}));
  EXPECT_LT((p.sum(-1) - 1).abs().max().item<double>(), 1e-12);
  EXPECT_GT(p[0][0][0][3].item<double>(), 0.0);  // position 6 sees itself
  EXPECT_EQ(p[0][0][0][4].item<double>(), 0.0);  // not the future
  EXPECT_GT(p[0][0][4][5].item<double>(), 0.0);  // position 10 sees 8, the last inside a window of 3
  EXPECT_EQ(p[0][0][4][4].item<double>(), 0.0);  // but not 7
}

// Blocks of queries must take their own documents.
TEST(AttentionKernel, DocumentsOfLongSequences) {
  for (const int64_t window : {0, 100}) {
    AttentionRequest request = request_of({2, 2, 1, 8, 1100, 1100, 0, 0, window, 0}, at::kDouble);
    request.documents = at::zeros({2, 1100}, at::kLong);
    request.documents[0].slice(0, 600) = 600;
    request.documents[1].slice(0, 30) = 30;
    request.documents[1].slice(0, 31) = 31;
    const at::Tensor whole = at::matmul(attention_probabilities(request), request.v);
    EXPECT_LT((attention_kernels().back()->run(request) - whole).abs().max().item<double>(), 1e-12);
    EXPECT_LT((attend(request) - whole).abs().max().item<double>(), 1e-12);
    EXPECT_EQ(attention_probabilities(request)[0][0][700].narrow(0, 0, 600).sum().item<double>(), 0.0);
  }
}

TEST(AttentionKernel, DispatchSaysWhy) {
  const AttentionRequest request = request_of({1, 2, 2, 8, 3, 3, 0, 0, 0, 50.0}, at::kFloat);
  std::map<std::string, KernelVerdict> verdicts;
  for (const KernelVerdict& verdict : explain_dispatch(request)) verdicts[verdict.kernel] = verdict;
  ASSERT_EQ(verdicts.size(), attention_kernels().size());
  EXPECT_EQ(verdicts["flash"].why_not, "misses CPU");
  EXPECT_EQ(verdicts["sdpa"].why_not, "misses soft cap");
  EXPECT_EQ(verdicts["reference"].why_not, "");
  for (const auto& [name, verdict] : verdicts) EXPECT_EQ(verdict.runs, name == "reference") << name;
}

TEST(AttentionKernel, AForcedKernelRunsOrSaysWhyNot) {
  const AttentionRequest plain = request_of({1, 4, 2, 8, 5, 5, 0, 0, 0, 0}, at::kFloat);
  const AttentionRequest capped = request_of({1, 4, 2, 8, 5, 5, 0, 0, 0, 50.0}, at::kFloat);
  const at::Tensor free = attend(plain);
  force_attention_kernel("reference");
  EXPECT_TRUE(explain_dispatch(plain).back().runs);
  EXPECT_TRUE(at::equal(attend(plain), attention_kernels().back()->run(plain)));
  force_attention_kernel("sdpa");
  try {
    attend(capped);
    ADD_FAILURE() << "a soft cap ran on sdpa";
  } catch (const UnsupportedError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("--kernel sdpa does not cover this attention: it misses soft cap"));
  }
  force_attention_kernel("auto");
  EXPECT_NO_THROW(attend(capped));
  EXPECT_TRUE(at::equal(attend(plain), free));
  EXPECT_THROW(force_attention_kernel("flush"), UsageError);
}

/// Answers as it is told, and counts what it is asked to compute.
struct ToldKernel : AttentionKernel {
  explicit ToldKernel(std::string misses, std::string left_to = "", bool checked = false)
      : misses_(std::move(misses)), left_to_(std::move(left_to)), checked_(checked) {}
  std::string name() const override { return fmt::format("told {}", fmt::ptr(this)); }
  std::string missing(const AttentionRequest&) const override { return misses_; }
  std::string leaves(const AttentionRequest&) const override { return left_to_; }
  bool is_checked_first() const override { return checked_; }
  at::Tensor run(const AttentionRequest& request) const override {
    ++runs;
    return at::zeros_like(request.q);  // which fails a check
  }
  mutable int runs = 0;

 private:
  std::string misses_, left_to_;
  bool checked_;
};

TEST(AttentionKernel, TheFirstThatTakesARequestRuns) {
  const AttentionRequest request = request_of({1, 2, 2, 8, 5, 5, 0, 0, 0, 0}, at::kFloat);
  const ToldKernel misses("fp32"), leaves("", "to others"), wrong("", "", true), takes(""), last("");
  const auto taker = [&](std::vector<const AttentionKernel*> kernels) { return &first_taker(kernels, request); };
  EXPECT_EQ(taker({&misses, &leaves, &takes, &last}), &takes);
  EXPECT_EQ(taker({&misses, &leaves, &last}), &leaves);  // rather than what takes everything
  EXPECT_EQ(taker({&misses, &last}), &last);
  const ToldKernel leaves_wrong("", "to others", true);
  EXPECT_EQ(taker({&leaves_wrong, &takes, &last}), &takes);
  EXPECT_EQ(leaves_wrong.runs, 0);  // not checked for nothing
  testing::internal::CaptureStderr();
  EXPECT_EQ(taker({&wrong, &leaves, &last}), &leaves);
  EXPECT_EQ(taker({&leaves_wrong, &wrong, &last}), &last);
  EXPECT_EQ(wrong.runs, 1);  // its check, once
  EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::HasSubstr("is not used for this model"));
}

// 2 heads of 5700 tokens: 260 MB of scores in fp32.
TEST(AttentionKernel, HoldingAllScoresIsSaid) {
  AttentionRequest request = request_of({1, 2, 1, 8, 5700, 5700, 0, 0, 0, 50.0}, at::kFloat);
  const auto warnings = [&] {
    testing::internal::CaptureStderr();
    attend(request);
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(warnings(), "");  // nothing is kept where nothing is recorded
  request.q.set_requires_grad(true);
  EXPECT_THAT(warnings(), testing::HasSubstr("holds all scores (0.3 GB per layer) for the gradients: flash misses CPU; "
                                             "cudnn misses CPU; sdpa misses soft cap; cinch misses CPU"));
  EXPECT_EQ(warnings(), "");  // once
}

}  // namespace
}  // namespace cinch
