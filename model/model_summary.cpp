#include "model/model_summary.h"

#include <fmt/format.h>

#include <algorithm>

namespace cinch {

int64_t kv_bytes_at(const ModelConfig& config, int64_t tokens) {
  int64_t bytes = 0;
  for (const AttentionSpec& layer : config.layers) {
    const int64_t held = layer.window > 0 ? std::min(layer.window, tokens) : tokens;
    bytes += 2 * layer.kv_elements() * held;
  }
  return bytes;
}

std::string kv_heads_text(const ModelConfig& config) {
  const auto text = [](const AttentionSpec& layer) {
    return layer.kind == AttentionKind::latent ? fmt::format("latent {}+{}", layer.kv_lora_rank, layer.qk_rope_head_dim)
                                               : std::to_string(layer.n_kv_heads);
  };
  const auto [least, most] = std::minmax_element(
      config.layers.begin(), config.layers.end(),
      [](const AttentionSpec& a, const AttentionSpec& b) { return a.kv_elements() < b.kv_elements(); });
  const std::string small = text(*least), large = text(*most);
  return small == large ? small : fmt::format("{} to {}", small, large);
}

Json model_summary(const ModelConfig& config, int64_t parameters) {
  Json layers = Json::array();
  for (const AttentionSpec& layer : config.layers) {
    const bool latent = layer.kind == AttentionKind::latent;
    const auto if_latent = [&](int64_t value) { return latent ? Json(value) : Json(nullptr); };
    layers.push_back({{"kind", kind_name(layer.kind)},
                      {"n_heads", layer.n_heads},
                      {"n_kv_heads", layer.n_kv_heads},
                      {"head_dim", layer.head_dim},
                      {"kv_lora_rank", if_latent(layer.kv_lora_rank)},
                      {"qk_nope_head_dim", if_latent(layer.qk_nope_head_dim)},
                      {"qk_rope_head_dim", if_latent(layer.qk_rope_head_dim)},
                      {"v_head_dim", if_latent(layer.v_head_dim)},
                      {"key_scale_tail", layer.key_scale_tail},
                      {"window", layer.window},
                      {"kv_elements", layer.kv_elements()}});
  }
  Json at;
  for (const int64_t tokens : {4096, 32768, 131072}) at[std::to_string(tokens)] = kv_bytes_at(config, tokens);
  return {{"architecture", config.architecture},
          {"family", config.family},
          {"n_layers", config.n_layers},
          {"hidden_size", config.hidden_size},
          {"vocab_size", config.vocab_size},
          {"max_position_embeddings", config.max_position_embeddings},
          {"layers", layers},
          {"parameters", parameters},
          {"kv_bytes_per_token", config.kv_bytes_per_token()},
          {"kv_bytes_at", at},
          {"dtype", config.dtype}};
}

}  // namespace cinch
