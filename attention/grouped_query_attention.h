// Multi-head, grouped-query and multi-query attention. Weights are (out, in).
#pragma once

#include <ATen/core/Tensor.h>

#include "attention/attention_module.h"
#include "attention/rope.h"

namespace cinch {

struct GroupedQueryWeights {
  at::Tensor q_proj;  // (H*D, E)
  at::Tensor k_proj;  // (K*D, E)
  at::Tensor v_proj;  // (K*D, E)
  at::Tensor o_proj;  // (E, H*D)
  at::Tensor q_bias;  // (H*D) or undefined
  at::Tensor k_bias;  // (K*D) or undefined
  at::Tensor v_bias;  // (K*D) or undefined
  at::Tensor o_bias;  // (E) or undefined
  at::Tensor q_norm;  // (D) or undefined
  at::Tensor k_norm;  // (D) or undefined

  GroupedQueryWeights to(at::ScalarType dtype, at::Device device) const;
  /// Throws ShapeError listing every tensor that does not fit `spec`.
  void check(const AttentionSpec& spec) const;
};

class GroupedQueryAttention : public AttentionModule {
 public:
  GroupedQueryAttention(AttentionSpec spec, GroupedQueryWeights weights);

  /// Projections before RoPE, after QK-norm where the spec has it: q (B, H, T, D), k and v (B, K, T, D), from x (B, T,
  /// E).
  struct Heads {
    at::Tensor q, k, v;
  };
  Heads project(const at::Tensor& x) const;

  at::Tensor head_outputs(const at::Tensor& x, int64_t first, int64_t length, KvCache* cache,
                          const at::Tensor& documents = {}) const override;
  at::Tensor output(const at::Tensor& head_outputs) const override;

  const AttentionSpec& spec() const override { return spec_; }
  const GroupedQueryWeights& weights() const { return weights_; }
  const Rope& rope() const { return rope_; }

 private:
  AttentionSpec spec_;
  GroupedQueryWeights weights_;
  Rope rope_;
};

}  // namespace cinch
