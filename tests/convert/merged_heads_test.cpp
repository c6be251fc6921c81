#include "convert/solvers/merged_heads.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "tests/convert/random_layer.h"

namespace cinch {
namespace {

/// Every KV head stays alone, every map is the identity.
MergedHeads untouched(const SourceHeads& heads) {
  const int64_t k = heads.k.size(0), d = heads.k.size(1), h = heads.q.size(0);
  const at::Tensor identity = at::eye(d, at::kDouble);
  const at::Tensor single = identity.reshape({1, d, 1, d}).expand({k, d, 1, d}).contiguous();
  return {.key = single, .query = identity.expand({h, d, d}).contiguous(), .value = single, .o = heads.o};
}

void expect_same(const GroupedQueryWeights& a, const GroupedQueryWeights& b) {
  const auto same = [](const at::Tensor& x, const at::Tensor& y, const char* name) {
    ASSERT_EQ(x.defined(), y.defined()) << name;
    if (!x.defined()) return;
    ASSERT_EQ(x.sizes(), y.sizes()) << name;
    EXPECT_EQ(x.dtype(), y.dtype()) << name;
    EXPECT_LT(largest_difference(x, y), 1e-6) << name;
  };
  same(a.q_proj, b.q_proj, "q_proj");
  same(a.k_proj, b.k_proj, "k_proj");
  same(a.v_proj, b.v_proj, "v_proj");
  same(a.o_proj, b.o_proj, "o_proj");
  same(a.q_bias, b.q_bias, "q_bias");
  same(a.k_bias, b.k_bias, "k_bias");
  same(a.v_bias, b.v_bias, "v_bias");
  same(a.o_bias, b.o_bias, "o_bias");
}

TEST(MergedHeads, IdentityMapsGiveTheSourceBack) {
  for (const bool bias : {false, true}) {
    const RandomLayer layer{
        .heads = 9, .kv_heads = 3, .head_dim = 6, .rotary_dim = 4, .bias = bias, .output_bias = bias};
    LayerProblem p = layer.problem();
    const SourceHeads heads = source_heads(p);
    expect_same(merged_weights(p, heads, untouched(heads)), p.weights);
    // In the dtype of the problem.
    p.weights = p.weights.to(at::kFloat, at::kCPU);
    expect_same(merged_weights(p, heads, untouched(heads)), p.weights);
  }
}

TEST(MergedHeads, TheFactorOfYarnDoesNotRemain) {
  const RandomLayer layer{.head_dim = 48};
  LayerProblem p = layer.problem();
  p.source.rope.type = "yarn";
  p.source.rope.factor = 4;
  p.source.rope.original_max_position_embeddings = 16;
  p.source.rope.max_position_embeddings = 64;
  const SourceHeads heads = source_heads(p);
  ASSERT_GT(heads.planes.gain.max().item<double>(), 1.0);
  expect_same(merged_weights(p, heads, untouched(heads)), p.weights);
}

TEST(MergedHeads, AMeanOfHeadsIsAMeanOfRows) {
  const RandomLayer layer{.heads = 9, .kv_heads = 3, .head_dim = 6, .rotary_dim = 2, .bias = true};
  const LayerProblem p = layer.problem();
  const SourceHeads heads = source_heads(p);
  MergedHeads merged = untouched(heads);
  merged.key = merged.value = (at::eye(6, at::kDouble) / 3).reshape({1, 6, 1, 6}).expand({1, 6, 3, 6}).contiguous();
  const GroupedQueryWeights w = merged_weights(p, heads, merged);
  const auto mean = [](const at::Tensor& rows) { return rows.unflatten(0, {3, 6}).mean(0); };
  EXPECT_LT(largest_difference(w.k_proj, mean(p.weights.k_proj)), 1e-14);
  EXPECT_LT(largest_difference(w.v_proj, mean(p.weights.v_proj)), 1e-14);
  EXPECT_LT(largest_difference(w.k_bias, mean(p.weights.k_bias)), 1e-14);
  EXPECT_LT(largest_difference(w.v_bias, mean(p.weights.v_bias)), 1e-14);
  EXPECT_LT(largest_difference(w.q_proj, p.weights.q_proj), 1e-14);
}

TEST(MergedHeads, MapsActOnTheirOwnGroup) {
  const RandomLayer layer{.heads = 4, .kv_heads = 4, .head_dim = 4, .target = 2, .rotary_dim = 0};
  const LayerProblem p = layer.problem();
  const SourceHeads heads = source_heads(p);
  at::manual_seed(3);
  MergedHeads merged = untouched(heads);
  merged.value = at::randn({2, 4, 2, 4}, at::kDouble);
  merged.key = merged.value;
  const GroupedQueryWeights w = merged_weights(p, heads, merged);
  for (int64_t j = 0; j < 2; ++j) {
    at::Tensor expected = at::zeros({4, p.source.hidden_size}, at::kDouble);
    for (int64_t a = 0; a < 2; ++a) {
      const int64_t head = 2 * j + a;
      expected += at::matmul(merged.value[j].select(1, a), p.weights.v_proj.slice(0, 4 * head, 4 * head + 4));
    }
    EXPECT_LT(largest_difference(w.v_proj.slice(0, 4 * j, 4 * j + 4), expected), 1e-13) << j;
  }
}

TEST(MergedHeads, OutputColumnsFollowTheHeads) {
  const at::Tensor o = at::arange(12, at::kDouble).reshape({3, 2, 2});  // (H, E, D)
  const at::Tensor expected = at::tensor({0.0, 1.0, 4.0, 5.0, 8.0, 9.0, 2.0, 3.0, 6.0, 7.0, 10.0, 11.0}, at::kDouble);
  const at::Tensor joined = joined_output(o, at::kFloat);
  EXPECT_EQ(joined.scalar_type(), at::kFloat);
  EXPECT_EQ(largest_difference(joined, expected.reshape({2, 6})), 0);
}

}  // namespace
}  // namespace cinch
