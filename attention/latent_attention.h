// Multi-head latent attention (MLA; DeepSeek-V2, arXiv 2405.04434, section 2.1) as a conversion needs it (biases,
// explicit rotary frequencies, QK-norm) and as stock classes have it (norms on the latent and on low-rank queries). A
// token's cache is one latent shared by all heads, one rotated key shared by all heads and, with QK-norm, the key scale
// of each KV head. Weights are (out, in).
#pragma once

#include <ATen/core/Tensor.h>

#include "attention/attention_module.h"
#include "attention/slot_rope.h"

namespace cinch {

struct LatentWeights {
  at::Tensor q_proj;     // (H*(Dn+Dr), E or Q), per head Dn rows that meet the latent, then Dr rotary rows (re, im) by
                         // slot
  at::Tensor kv_a_proj;  // (R+Dr, E), latent rows, then the shared rotary key's rows (re, im) by slot
  at::Tensor kv_b_proj;  // (H*(Dn+Dv), R), per query head Dn key rows, then Dv value rows
  at::Tensor o_proj;     // (E, H*Dv)
  at::Tensor k_norm_proj;  // (K*D, E), the source's key projection, with key_scale_tail only
  at::Tensor q_bias;       // (H*(Dn+Dr)) or undefined
  at::Tensor kv_a_bias;    // (R+Dr) or undefined
  at::Tensor o_bias;       // (E) or undefined
  at::Tensor k_norm_bias;  // (K*D) or undefined
  at::Tensor q_a_proj{}, q_a_norm{},
      q_a_bias{};          // (Q, E), (Q), (Q) with q_lora_rank only; the bias with down_bias only
  at::Tensor kv_a_norm{};  // (R) with latent_norm only

  LatentWeights to(at::ScalarType dtype, at::Device device) const;
  /// Throws ShapeError listing every tensor that does not fit `spec`.
  void check(const AttentionSpec& spec) const;
};

/// Two ways to the same numbers. Unabsorbed expands keys and values of every query head from the latent; absorbed takes
/// the queries to the latent instead and attends to the cache as one shared head.
enum class LatentForm { cheapest, unabsorbed, absorbed };

/// Which of the two costs fewer multiplications for so many queries and keys.
LatentForm cheaper_latent_form(const AttentionSpec& spec, int64_t queries, int64_t keys);

/// QK-norm (spec.qk_norm, which needs key_scale_tail and Dn = D) is exact: gains are part of the maps. The NoPE query
/// rows are the source's raw query; all Dn+Dr numbers of a head are divided by the root mean square of its Dn ones, and
/// every score is multiplied by the key's scale, 1 / rms(k_norm_proj x) of the KV head that the query head had.
class LatentAttention : public AttentionModule {
 public:
  /// Throws ShapeError when the sizes contradict each other or a tensor does not fit.
  LatentAttention(AttentionSpec spec, LatentWeights weights, LatentForm form = LatentForm::cheapest);

  /// Projections before rotation, from x (B, T, E); queries are divided by their rms where the spec has QK-norm.
  struct Heads {
    at::Tensor q_nope;     // (B, H, T, Dn)
    at::Tensor q_rope;     // (B, H, T, Dr)
    at::Tensor latent;     // (B, T, R)
    at::Tensor k_rope;     // (B, T, Dr)
    at::Tensor key_scale;  // (B, T, K), undefined without key_scale_tail
  };
  Heads project(const at::Tensor& x) const;

  /// Rotated queries, and what the cache holds of every token that they may see.
  struct Seen {
    at::Tensor q_nope, q_rope;  // (B, H, T, Dn), (B, H, T, Dr)
    at::Tensor entries;         // (B, 1, S, R+Dr+K), K columns of key scales with key_scale_tail only
    int64_t first_query, first_key;
    at::Tensor documents;  // (B, T) or undefined
  };
  /// Outputs of all heads before o_proj, (B, T, H*Dv), in the cheaper form.
  at::Tensor attend_to(const Seen& seen) const;

  /// `length` is not used: the frequencies are explicit.
  at::Tensor head_outputs(const at::Tensor& x, int64_t first, int64_t length, KvCache* cache,
                          const at::Tensor& documents = {}) const override;
  at::Tensor output(const at::Tensor& head_outputs) const override;

  const AttentionSpec& spec() const override { return spec_; }
  const LatentWeights& weights() const { return weights_; }

 private:
  bool absorbs(int64_t queries, int64_t keys) const;
  at::Tensor absorbed(const Seen& seen) const;    // (B, H, T, Dv)
  at::Tensor unabsorbed(const Seen& seen) const;  // (B, H, T, Dv)
  /// (B, K, S, 1)
  at::Tensor key_scale(const Seen& seen) const;
  at::Tensor attend_to(const Seen& seen, at::Tensor q, at::Tensor k, at::Tensor v) const;

  AttentionSpec spec_;
  LatentWeights weights_;
  LatentForm form_;
  SlotRope rope_;
};

}  // namespace cinch
