// What one attention layer is: sizes and features, without weights. Plain data, no torch.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cinch {

// MHA and MQA are grouped_query with n_kv_heads = n_heads and 1; latent is multi-head latent attention (MLA).
enum class AttentionKind { grouped_query, latent };

/// As files and reports spell it.
inline const char* kind_name(AttentionKind kind) { return kind == AttentionKind::latent ? "latent" : "grouped_query"; }

/// Rotary embedding as config.json states it; `Rope` (attention/rope.h) turns it into frequencies.
struct RopeSpec {
  std::string type = "default";  // default, linear, dynamic, yarn, llama3, longrope
  double theta = 10000.0;
  int64_t rotary_dim = 0;  // rotated leading dims of a head (D unless partial rotary)
  int64_t max_position_embeddings = 2048;
  int64_t original_max_position_embeddings = 0;  // 0: not given
  double factor = 1.0;
  std::optional<double> attention_factor, mscale, mscale_all_dim;
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  bool truncate = true;                                  // yarn
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  std::vector<double> short_factor, long_factor;         // longrope, rotary_dim/2 each

  friend bool operator==(const RopeSpec&, const RopeSpec&) = default;
};

struct AttentionSpec {
  AttentionKind kind = AttentionKind::grouped_query;
  int64_t hidden_size = 0;  // E
  int64_t n_heads = 0;      // H
  int64_t n_kv_heads = 0;   // K
  int64_t head_dim = 0;     // D
  double scale = 0;         // of the scores; 1/sqrt(D) unless the family says otherwise
  int64_t window = 0;       // sliding window in tokens; 0 = none. A query sees keys with t - s < window
  double softcap = 0;       // scores become cap * tanh(scores / cap); 0 = none
  bool qkv_bias = false;
  bool output_bias = false;
  bool qk_norm = false;  // RMSNorm over D on q and k between projection and RoPE (Qwen3)
  double qk_norm_eps = 1e-6;
  RopeSpec rope;  // of grouped-query attention; latent attention has its own frequencies

  // Latent attention only. n_kv_heads, head_dim and rope stay those of the layer it was made from.
  int64_t kv_lora_rank = 0;           // R, cached latent
  int64_t qk_nope_head_dim = 0;       // Dn, numbers per query head that meet the latent; may be 0
  int64_t qk_rope_head_dim = 0;       // Dr, rotated numbers per query head and of the one shared key; even, may be 0
  int64_t v_head_dim = 0;             // Dv
  std::vector<double> rope_inv_freq;  // (Dr/2), radians per token of each rotated pair; repeats allowed
  bool key_scale_tail = false;        // caches 1/rms of each KV head's raw key: QK-norm
  // What stock MLA classes have and conversions do not make.
  int64_t q_lora_rank = 0;        // Q, width that queries pass through, with a norm there; 0: none
  bool latent_norm = false;       // RMSNorm over R on the latent before it is cached
  double latent_norm_eps = 1e-6;  // of that norm and of the queries' one
  bool down_bias = false;         // biases of the projections to R+Dr and Q, but none of the query heads
  double rotary_scaling = 1.0;    // factor on cos and sin (YaRN)

  int64_t group_size() const { return n_heads / n_kv_heads; }  // G
  /// Numbers that one token adds to this layer's cache.
  int64_t kv_elements() const {
    if (kind == AttentionKind::grouped_query) return 2 * n_kv_heads * head_dim;
    return kv_lora_rank + qk_rope_head_dim + (key_scale_tail ? n_kv_heads : 0);
  }

  friend bool operator==(const AttentionSpec&, const AttentionSpec&) = default;
};

}  // namespace cinch
