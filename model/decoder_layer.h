// One decoder layer: norm, attention, residual, norm, MLP, residual; also in the parts that conversion needs.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "attention/rms_norm.h"
#include "model/layer_weights.h"
#include "model/model_config.h"

namespace cinch {

class DecoderLayer {
 public:
  DecoderLayer(const ModelConfig& config, int64_t layer, LayerWeights weights);

  /// h (B, T, E) -> (B, T, E); positions start at `first`; `length` is the full sequence length for length-dependent
  /// RoPE (0: first + T). `documents` (B, T) int64: for each token the position where its document begins; tokens of
  /// different documents do not meet. Undefined: all are of one.
  at::Tensor forward(const at::Tensor& h, int64_t first = 0, int64_t length = 0, KvCache* cache = nullptr,
                     const at::Tensor& documents = {}) const;

  /// What the attention reads: the normed input.
  at::Tensor attention_input(const at::Tensor& h) const;
  /// What attention adds to the residual stream: the o_proj output itself, or its norm where the family has sandwich
  /// norms.
  at::Tensor attention_residual(const at::Tensor& attention_output) const;
  /// The residual stream after attention: h + attention_residual(attention_output).
  at::Tensor add_attention(const at::Tensor& h, const at::Tensor& attention_output) const;
  /// The second half of the layer: h + mlp(norm(h)).
  at::Tensor add_mlp(const at::Tensor& h) const;

  const AttentionModule& attention() const { return *attention_; }
  /// The attention where it must be grouped-query. Throws UnsupportedError naming the layer when it is latent.
  const GroupedQueryAttention& grouped_query_attention() const;
  /// The same layer around other attention (of another kind, or with fewer KV heads). MLP and norms are shared, not
  /// copied.
  DecoderLayer with_attention(std::shared_ptr<const AttentionModule> attention) const;

 private:
  const ModelConfig* config_;
  int64_t layer_;
  std::shared_ptr<const AttentionModule> attention_;
  LayerWeights weights_;  // MLP and norms; the attention has its own
};

}  // namespace cinch
