// A decoder model without its weights: sizes, features, and one AttentionSpec per layer. Plain data, no torch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attention/attention_spec.h"
#include "core/json.h"

namespace cinch {

enum class Activation { silu, gelu_tanh, gelu };

struct ModelConfig {
  std::string family;             // "llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3"
  std::string architecture;       // Hugging Face class, "LlamaForCausalLM"
  int64_t hidden_size = 0;        // E
  int64_t n_layers = 0;           // L
  int64_t intermediate_size = 0;  // F
  int64_t vocab_size = 0;         // V
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-5;
  Activation activation = Activation::silu;
  bool tie_word_embeddings = false;
  bool mlp_bias = false;
  bool sandwich_norms = false;        // Gemma-2: norms after attention and MLP too
  double norm_offset = 0.0;           // Gemma: weight is 1 + w
  double embedding_multiplier = 1.0;  // Gemma: sqrt(E)
  double final_logit_softcap = 0.0;   // 0 = none
  std::string dtype = "float32";      // of the file, torch_dtype
  std::vector<AttentionSpec> layers;  // (L)
  Json source;                        // config.json as read, so that keys cinch does not use are carried over

  /// Numbers per token over all layers, and their bytes at `bits` per number.
  int64_t kv_elements() const;
  int64_t kv_bytes_per_token(int bits = 16) const;
};

}  // namespace cinch
