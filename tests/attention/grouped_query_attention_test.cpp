#include "attention/grouped_query_attention.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/errors.h"

namespace cinch {
namespace {

AttentionSpec spec_of(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t hidden) {
  AttentionSpec spec;
  spec.hidden_size = hidden;
  spec.n_heads = heads;
  spec.n_kv_heads = kv_heads;
  spec.head_dim = head_dim;
  spec.scale = 0.3;
  spec.rope.rotary_dim = head_dim;
  return spec;
}

GroupedQueryWeights weights_of(const AttentionSpec& spec) {
  at::manual_seed(3);
  const auto random = [](std::vector<int64_t> shape) { return at::randn(shape, at::kDouble) * 0.3; };
  const int64_t q = spec.n_heads * spec.head_dim, kv = spec.n_kv_heads * spec.head_dim;
  GroupedQueryWeights weights;
  weights.q_proj = random({q, spec.hidden_size});
  weights.k_proj = random({kv, spec.hidden_size});
  weights.v_proj = random({kv, spec.hidden_size});
  weights.o_proj = random({spec.hidden_size, q});
  if (spec.qkv_bias) {
    weights.q_bias = random({q});
    weights.k_bias = random({kv});
    weights.v_bias = random({kv});
  }
  if (spec.output_bias) weights.o_bias = random({spec.hidden_size});
  if (spec.qk_norm) {
    weights.q_norm = random({spec.head_dim});
    weights.k_norm = random({spec.head_dim});
  }
  return weights;
}

TEST(GroupedQueryAttention, RepeatedKeyHeadsAreMultiHead) {
  AttentionSpec grouped = spec_of(9, 3, 16, 40);
  grouped.qkv_bias = grouped.output_bias = grouped.qk_norm = true;
  const GroupedQueryWeights weights = weights_of(grouped);
  AttentionSpec multi = grouped;
  multi.n_kv_heads = 9;
  GroupedQueryWeights repeated = weights;
  const auto repeat = [](const at::Tensor& x) { return x.unflatten(0, {3, 16}).repeat_interleave(3, 0).flatten(0, 1); };
  for (at::Tensor* tensor : {&repeated.k_proj, &repeated.v_proj, &repeated.k_bias, &repeated.v_bias})
    *tensor = repeat(*tensor);
  const at::Tensor x = at::randn({2, 11, 40}, at::kDouble);
  const at::Tensor a = GroupedQueryAttention(grouped, weights).forward(x, 0, 0, nullptr);
  const at::Tensor b = GroupedQueryAttention(multi, repeated).forward(x, 0, 0, nullptr);
  EXPECT_LT((a - b).abs().max().item<double>(), 1e-12);
}

TEST(GroupedQueryAttention, ProjectionsAreBeforeRope) {
  const AttentionSpec spec = spec_of(6, 2, 48, 30);
  const GroupedQueryAttention attention(spec, weights_of(spec));
  const at::Tensor x = at::randn({1, 4, 30}, at::kDouble);
  const GroupedQueryAttention::Heads heads = attention.project(x);
  EXPECT_EQ(heads.q.sizes(), (std::vector<int64_t>{1, 6, 4, 48}));
  EXPECT_EQ(heads.k.sizes(), (std::vector<int64_t>{1, 2, 4, 48}));
  const at::Tensor key = at::matmul(attention.weights().k_proj, x[0][3]).view({2, 48});
  EXPECT_LT((heads.k[0].select(1, 3) - key).abs().max().item<double>(), 1e-12);
}

TEST(GroupedQueryAttention, CacheInChunksEqualsOneCall) {
  for (const int64_t window : {0, 1, 5}) {
    AttentionSpec spec = spec_of(6, 2, 8, 24);
    spec.window = window;
    const GroupedQueryAttention attention(spec, weights_of(spec));
    const at::Tensor x = at::randn({2, 40, 24}, at::kDouble);
    const at::Tensor whole = attention.forward(x, 0, 0, nullptr);
    KvCache cache;
    std::vector<at::Tensor> parts;
    int64_t first = 0;
    for (const int64_t count : {7, 1, 1, 13, 1, 17}) {
      parts.push_back(attention.forward(x.narrow(1, first, count), first, 40, &cache));
      first += count;
    }
    EXPECT_LT((at::cat(parts, 1) - whole).abs().max().item<double>(), 1e-12) << "window " << window;
  }
}

/// softmax(q k^T) v of given keys and values, one query at a time: q (B, H, T, D), k, v (B, K, T, D) -> (B, T, H*D).
at::Tensor attended(const AttentionSpec& spec, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  std::vector<at::Tensor> heads;
  for (int64_t h = 0; h < spec.n_heads; ++h) {
    const int64_t kv_head = h / spec.group_size();
    std::vector<at::Tensor> tokens;
    for (int64_t t = 0; t < q.size(2); ++t) {
      const int64_t first = spec.window > 0 ? std::max<int64_t>(0, t - spec.window + 1) : 0;
      const auto seen = [&](const at::Tensor& x) { return x.select(1, kv_head).narrow(1, first, t + 1 - first); };
      const at::Tensor scores = at::matmul(seen(k), q.select(1, h).select(1, t).unsqueeze(-1)) * spec.scale;
      tokens.push_back((at::softmax(scores, 1) * seen(v)).sum(1));
    }
    heads.push_back(at::stack(tokens, 1));
  }
  return at::cat(heads, -1);
}

TEST(GroupedQueryAttention, SeesWhatTheCacheRounds) {
  for (const int64_t window : {0, 20}) {
    AttentionSpec spec = spec_of(6, 2, 72, 24);
    spec.window = window;
    const GroupedQueryAttention attention(spec, weights_of(spec));
    const at::Tensor x = at::randn({2, 131, 24}, at::kDouble);
    const GroupedQueryAttention::Heads heads = attention.project(x);
    const Rope::Table table = attention.rope().table(0, 131, 131, at::kDouble, at::kCPU);
    const at::Tensor q = Rope::apply(heads.q, table), k = Rope::apply(heads.k, table);
    const at::Tensor exact = attention.head_outputs(x, 0, 0, nullptr);
    KvCache plain;
    EXPECT_LT((attention.head_outputs(x, 0, 0, &plain) - exact).abs().max().item<double>(), 1e-12);
    double before = 0;
    for (const int bits : {8, 4, 2}) {
      const CachePrecision precision{.bits = bits};
      KvCache cache(precision);
      const at::Tensor found = attention.head_outputs(x, 0, 0, &cache);
      const at::Tensor expected =
          attended(spec, q, rounded_per_channel(k, precision), rounded_per_token(heads.v, precision));
      EXPECT_LT((found - expected).abs().max().item<double>(), 1e-12) << bits << " bits, window " << window;
      const double error = ((found - exact).norm() / exact.norm()).item<double>();
      EXPECT_GT(error, 4 * before) << bits;
      if (bits == 8) {
        EXPECT_LT(error, 0.03);
      }
      before = error;
      EXPECT_EQ(cache.bytes_per_token(), 2 * 2 * 72 * 8) << "measured, not emulated";
    }
  }
}

TEST(GroupedQueryAttention, OutputOfHeadsThenProjectionIsForward) {
  AttentionSpec spec = spec_of(3, 1, 10, 17);
  spec.softcap = 4.0;
  const GroupedQueryAttention attention(spec, weights_of(spec));
  const at::Tensor x = at::randn({1, 6, 17}, at::kDouble);
  const at::Tensor heads = attention.head_outputs(x, 0, 0, nullptr);
  EXPECT_EQ(heads.sizes(), (std::vector<int64_t>{1, 6, 30}));
  EXPECT_TRUE(at::equal(attention.output(heads), attention.forward(x, 0, 0, nullptr)));
}

TEST(GroupedQueryAttention, NamesEveryTensorThatDoesNotFit) {
  AttentionSpec spec = spec_of(6, 2, 8, 24);
  GroupedQueryWeights weights = weights_of(spec);
  weights.k_proj = at::zeros({8, 24}, at::kDouble);
  weights.q_bias = at::zeros({48}, at::kDouble);
  weights.o_proj = at::Tensor();
  try {
    GroupedQueryAttention attention(spec, weights);
    FAIL();
  } catch (const ShapeError& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("k_proj"), testing::HasSubstr("q_bias"),
                                             testing::HasSubstr("o_proj")));
  }
  spec.n_kv_heads = 4;
  EXPECT_THROW(GroupedQueryAttention(spec, weights_of(spec)), ShapeError);
}

}  // namespace
}  // namespace cinch
