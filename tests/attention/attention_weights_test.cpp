#include "attention/attention_weights.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/errors.h"

namespace cinch {
namespace {

AttentionSpec spec_of(AttentionKind kind) {
  AttentionSpec spec;
  spec.kind = kind;
  spec.hidden_size = 5;
  spec.n_heads = spec.n_kv_heads = 3;
  spec.head_dim = spec.rope.rotary_dim = 4;
  spec.scale = 0.5;
  if (kind == AttentionKind::latent) {
    spec.kv_lora_rank = 7;
    spec.qk_nope_head_dim = spec.v_head_dim = 4;
  }
  return spec;
}

const GroupedQueryWeights& grouped_weights() {
  const auto ones = [](std::vector<int64_t> shape) { return at::ones(shape, at::kDouble); };
  static const GroupedQueryWeights weights{
      .q_proj = ones({12, 5}), .k_proj = ones({12, 5}), .v_proj = ones({12, 5}), .o_proj = ones({5, 12})};
  return weights;
}

const LatentWeights& latent_weights() {
  const auto ones = [](std::vector<int64_t> shape) { return at::ones(shape, at::kDouble); };
  static const LatentWeights weights{
      .q_proj = ones({12, 5}), .kv_a_proj = ones({7, 5}), .kv_b_proj = ones({24, 7}), .o_proj = ones({5, 12})};
  return weights;
}

TEST(AttentionWeights, MakeTheModuleOfTheirKind) {
  const AttentionSpec latent_spec = spec_of(AttentionKind::latent),
                      grouped_spec = spec_of(AttentionKind::grouped_query);
  const auto latent = make_attention(latent_spec, latent_weights());
  const auto grouped = make_attention(grouped_spec, grouped_weights());
  EXPECT_EQ(latent->spec(), latent_spec);
  EXPECT_EQ(grouped->spec(), grouped_spec);
  EXPECT_EQ(&as_grouped_query(*grouped), grouped.get());
  EXPECT_THROW(as_grouped_query(*latent), UnsupportedError);
  EXPECT_THROW(make_attention(grouped_spec, latent_weights()), ShapeError);
  EXPECT_THROW(make_attention(latent_spec, grouped_weights()), ShapeError);
}

TEST(AttentionWeights, BothKindsServeAsOneInterface) {
  const at::Tensor x = at::randn({2, 3, 5}, at::kDouble);
  for (const auto& attention : {make_attention(spec_of(AttentionKind::latent), latent_weights()),
                                make_attention(spec_of(AttentionKind::grouped_query), grouped_weights())}) {
    KvCache cache;
    const at::Tensor heads = attention->head_outputs(x, 0, 0, nullptr);
    EXPECT_EQ(heads.sizes(), (std::vector<int64_t>{2, 3, 12}));
    EXPECT_TRUE(at::equal(attention->output(heads), attention->forward(x, 0, 0, nullptr)));
    const at::Tensor cached = attention->forward(x, 0, 0, &cache);
    EXPECT_LT((cached - attention->output(heads)).abs().max().item<double>(), 1e-12);
    EXPECT_EQ(cache.bytes_per_token(), 8 * attention->spec().kv_elements());
  }
}

}  // namespace
}  // namespace cinch
