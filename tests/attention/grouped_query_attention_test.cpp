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
