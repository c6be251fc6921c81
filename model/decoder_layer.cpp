#include "model/decoder_layer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "attention/recorded.h"
#include "core/errors.h"
#include "model/fused_gate.h"

namespace cinch {
namespace {

at::Tensor activated(const at::Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return at::silu(x);
    case Activation::gelu_tanh:
      return at::gelu(x, "tanh");
    case Activation::gelu:
      return at::gelu(x);
  }
  return x;
}

/// In place.
at::Tensor& activate(at::Tensor& x, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return at::silu_(x);
    case Activation::gelu_tanh:
      return at::gelu_(x, "tanh");
    case Activation::gelu:
      return at::gelu_(x);
  }
  return x;
}

/// activation(gate) * up
at::Tensor gated(at::Tensor gate, const at::Tensor& up, Activation activation) {
  if (activation == Activation::silu && has_fused_gate(gate)) return fused_gate(gate, up);
  if (is_recorded({gate, up})) return activated(gate, activation) * up;
  return activate(gate, activation).mul_(up);
}

}  // namespace

DecoderLayer::DecoderLayer(const ModelConfig& config, int64_t layer, LayerWeights weights)
    : config_(&config),
      layer_(layer),
      attention_(make_attention(config.layers.at(static_cast<size_t>(layer)), std::move(weights.attention))),
      weights_(std::move(weights)) {
  weights_.attention = {};
}

const GroupedQueryAttention& DecoderLayer::grouped_query_attention() const {
  return with_context(fmt::format("using layer {}", layer_),
                      [&]() -> const GroupedQueryAttention& { return as_grouped_query(*attention_); });
}

at::Tensor DecoderLayer::attention_input(const at::Tensor& h) const {
  return rms_norm(h, weights_.input_norm, config_->rms_norm_eps, config_->norm_offset);
}

at::Tensor DecoderLayer::attention_residual(const at::Tensor& attention_output) const {
  if (!config_->sandwich_norms) return attention_output;
  return rms_norm(attention_output, weights_.post_attention_norm, config_->rms_norm_eps, config_->norm_offset);
}

at::Tensor DecoderLayer::add_attention(const at::Tensor& h, const at::Tensor& attention_output) const {
  return h + attention_residual(attention_output);
}

at::Tensor DecoderLayer::add_mlp(const at::Tensor& h) const {
  const MlpWeights& mlp = weights_.mlp;
  const at::Tensor& norm = config_->sandwich_norms ? weights_.pre_mlp_norm : weights_.post_attention_norm;
  const at::Tensor x = rms_norm(h, norm, config_->rms_norm_eps, config_->norm_offset);
  const at::Tensor inner =
      gated(at::linear(x, mlp.gate_proj, mlp.gate_bias), at::linear(x, mlp.up_proj, mlp.up_bias), config_->activation);
  at::Tensor out = at::linear(inner, mlp.down_proj, mlp.down_bias);
  if (!config_->sandwich_norms) return is_recorded({h, out}) ? h + out : out.add_(h);
  return h + rms_norm(out, weights_.post_mlp_norm, config_->rms_norm_eps, config_->norm_offset);
}

at::Tensor DecoderLayer::forward(const at::Tensor& h, int64_t first, int64_t length, KvCache* cache,
                                 const at::Tensor& documents) const {
  return add_mlp(add_attention(h, attention_->forward(attention_input(h), first, length, cache, documents)));
}

DecoderLayer DecoderLayer::with_attention(std::shared_ptr<const AttentionModule> attention) const {
  DecoderLayer copy = *this;
  copy.attention_ = std::move(attention);
  return copy;
}

}  // namespace cinch
