#include "train/planning/activation_bytes.h"

#include <algorithm>

namespace cinch {
namespace {

// Queries at once in the kernels of attention/kernels that cut them into blocks.
constexpr int64_t kReferenceBlock = 256;
constexpr int64_t kMaskedBlock = 512;

struct Scores {
  int64_t pairs = 0, keys = 0, largest = 0;  // of all blocks: queries x keys, keys; queries x keys of the largest
};

/// Each block of queries meets the keys before its end, and no older ones than its window.
Scores count_scores(int64_t queries, int64_t window, int64_t block) {
  Scores scores;
  for (int64_t first = 0; first < queries; first += block) {
    const int64_t count = std::min(block, queries - first), last = first + count;
    const int64_t keys = window > 0 ? std::min(last, count + window - 1) : last;
    scores.pairs += count * keys;
    scores.keys += keys;
    scores.largest = std::max(scores.largest, count * keys);
  }
  return scores;
}

/// As LatentAttention chooses where every token is a query and a key.
bool is_absorbed(const AttentionSpec& spec) { return 2 * spec.kv_lora_rank < spec.qk_nope_head_dim + spec.v_head_dim; }

/// Through a mask of (T, S), which the flash kernel of CUDA does without.
bool is_masked(const AttentionSpec& spec, const ActivationShape& shape) {
  const bool flash = !shape.on_cpu && shape.compute_bytes == 2 && spec.softcap == 0;
  return spec.window > 0 && shape.window > spec.window && !flash;
}

/// Numbers of each kind that one token makes a layer keep, and bytes that do not follow the tokens.
class Keeper {
 public:
  Keeper(const ModelConfig& config, const AttentionSpec& spec, const ActivationShape& shape)
      : config_(config), spec_(spec), shape_(shape) {}

  int64_t total() {
    compute_ += config_.hidden_size;  // the layer's input
    norm(config_.hidden_size, 1, shape_.trains_trunk, /*input_is_kept=*/true);
    if (shape_.trains_attention) compute_ += config_.hidden_size;  // what the attention's projections read
    spec_.kind == AttentionKind::latent ? latent() : grouped_query();
    if (config_.sandwich_norms) norm(config_.hidden_size, 1, shape_.trains_trunk);
    norm(config_.hidden_size, 1, shape_.trains_trunk);
    // gate, activation(gate), up; one kernel of CUDA keeps its inputs alone
    const bool fused = !shape_.on_cpu && shape_.compute_bytes < 8 && config_.activation == Activation::silu;
    compute_ += (fused ? 2 : 3) * config_.intermediate_size;
    if (shape_.trains_trunk) compute_ += config_.hidden_size + config_.intermediate_size;
    if (config_.sandwich_norms) norm(config_.hidden_size, 1, shape_.trains_trunk);
    return shape_.tokens() * (compute_ * shape_.compute_bytes + work_ * shape_.work_bytes) + bytes_;
  }

 private:
  /// x * rsqrt(mean(x^2)) * weight of `rows` rows, `width` numbers in all. The wide input is kept: x itself where the
  /// types are equal.
  void norm(int64_t width, int64_t rows, bool trained, bool input_is_kept = false) {
    if (!shape_.on_cpu && config_.norm_offset == 0) {  // one kernel, which keeps its input and the roots
      work_ += rows;
      if (!input_is_kept) compute_ += width;
      return;
    }
    inverse_rms(width, rows, input_is_kept);
    if (config_.norm_offset != 0) bytes_ += width / rows * shape_.work_bytes;  // 1 + w
    if (!trained) return;
    // Before the weight: rounded, or wide where the weight is 1 + w.
    (config_.norm_offset != 0 ? work_ : compute_) += width;
  }

  void grouped_query() {
    const int64_t q = spec_.n_heads * spec_.head_dim, kv = spec_.n_kv_heads * spec_.head_dim;
    if (spec_.qk_norm) {
      norm(q, spec_.n_heads, shape_.trains_attention);
      norm(kv, spec_.n_kv_heads, shape_.trains_attention);
    }
    rotary_table(spec_.rope.rotary_dim);
    compute_ += q + 2 * kv;
    attention({.key_heads = spec_.n_kv_heads, .width = spec_.head_dim, .value_width = spec_.head_dim});
    // Kernels leave the heads' outputs as the queries lie, token by token; blocks of queries are put together head by
    // head, and joining the heads copies them.
    if (holds_probabilities(spec_, shape_) || is_masked(spec_, shape_)) compute_ += q;
  }

  void latent() {
    const int64_t h = spec_.n_heads, r = spec_.kv_lora_rank, dn = spec_.qk_nope_head_dim, dr = spec_.qk_rope_head_dim;
    const int64_t dv = spec_.v_head_dim, tail = spec_.key_scale_tail ? spec_.n_kv_heads : 0;
    if (spec_.q_lora_rank > 0) {
      norm(spec_.q_lora_rank, 1, shape_.trains_attention);
      if (shape_.trains_attention) compute_ += spec_.q_lora_rank;
    }
    if (spec_.qk_norm) {
      compute_ += h * (dn + dr);
      inverse_rms(h * dn, h, /*input_is_kept=*/true);
    }
    if (spec_.latent_norm) {
      norm(r, 1, shape_.trains_attention);
      if (same_type()) compute_ += dr;  // beside the latent in one product
    }
    if (tail > 0) inverse_rms(tail * spec_.head_dim, tail, /*input_is_kept=*/false);
    rotary_table(dr);
    compute_ += r + dr + tail;  // cached entries
    if (is_absorbed(spec_)) {
      absorbed(tail);
    } else {
      expanded(tail);
    }
    if (shape_.trains_attention) compute_ += h * dv;  // heads joined by a copy
  }

  void absorbed(int64_t tail) {
    const int64_t h = spec_.n_heads, r = spec_.kv_lora_rank, dr = spec_.qk_rope_head_dim;
    compute_ += h * (spec_.qk_nope_head_dim + dr);  // queries, and again in the latent's space
    compute_ += h * (r + dr);
    const int64_t key_heads = std::max<int64_t>(tail, 1);
    if (tail > 0) compute_ += tail * (r + dr);
    compute_ += key_heads * (r + dr);  // values as wide as keys
    attention({.key_heads = key_heads, .width = r + dr, .value_width = r + dr});
    compute_ += h * r;  // rows of each head's value map
  }

  void expanded(int64_t tail) {
    const int64_t h = spec_.n_heads, dn = spec_.qk_nope_head_dim, dr = spec_.qk_rope_head_dim, dv = spec_.v_head_dim;
    const int64_t width = std::max(dn + dr, dv);
    // Keys and values out of one product; values that are wider or narrower than keys are copied.
    compute_ += h * (dv == width ? dn + dv : width);
    compute_ += 2 * h * width;  // queries, keys
    if (tail > 0) compute_ += h * (dn + dr) + h;
    attention({.key_heads = h, .width = width, .value_width = width});
  }

  void inverse_rms(int64_t width, int64_t rows, bool input_is_kept) {
    work_ += (same_type() && input_is_kept ? 0 : width) + rows;
  }

  bool same_type() const { return shape_.compute_bytes == shape_.work_bytes; }

  void rotary_table(int64_t dim) { bytes_ += shape_.window * dim * shape_.compute_bytes; }

  struct Heads {
    int64_t key_heads, width, value_width;
  };
  void attention(const Heads& heads) {
    const int64_t h = spec_.n_heads;
    if (!holds_probabilities(spec_, shape_)) {
      compute_ += h * heads.value_width;  // the result
      work_ += h;                         // logarithm of the sum of each softmax
      if (is_masked(spec_, shape_))
        bytes_ += count_scores(shape_.window, spec_.window, kMaskedBlock).pairs * shape_.compute_bytes;
      return;
    }
    const Scores scores = count_scores(shape_.window, spec_.window, kReferenceBlock);
    const int64_t narrow = same_type() ? 0 : shape_.compute_bytes;
    const int64_t per_pair = shape_.work_bytes + narrow + (spec_.softcap > 0 ? shape_.compute_bytes : 0);
    bytes_ += shape_.samples * h * scores.pairs * per_pair + scores.pairs;  // and a mask
    if (h == heads.key_heads) return;
    // Keys and values are repeated for each query head, block by block, instead of being kept.
    compute_ -= heads.key_heads * (heads.width + heads.value_width);
    bytes_ += shape_.samples * h * scores.keys * (heads.width + heads.value_width) * shape_.compute_bytes;
  }

  const ModelConfig& config_;
  const AttentionSpec& spec_;
  const ActivationShape& shape_;
  int64_t compute_ = 0, work_ = 0;  // numbers per token
  int64_t bytes_ = 0;
};

}  // namespace

bool holds_probabilities(const AttentionSpec& spec, const ActivationShape& shape) {
  if (spec.softcap > 0) return true;
  if (shape.on_cpu) return false;
  const bool shares_heads = spec.kind == AttentionKind::grouped_query && spec.n_heads != spec.n_kv_heads;
  const bool flash = shape.compute_bytes == 2;
  const bool memory_efficient = shape.compute_bytes <= 4 && !shares_heads;
  return !flash && !memory_efficient;
}

LayerActivations layer_activations(const ModelConfig& config, int64_t layer, const ActivationShape& shape) {
  const AttentionSpec& spec = config.layers.at(static_cast<size_t>(layer));
  const int64_t e = config.hidden_size, f = config.intermediate_size, h = spec.n_heads;
  int64_t scores = 0;
  if (holds_probabilities(spec, shape)) {
    scores = shape.samples * h * count_scores(shape.window, spec.window, kReferenceBlock).largest *
             (2 * shape.compute_bytes + shape.work_bytes);
  }
  // A mask, its additive form, and the distances that it is made from.
  if (is_masked(spec, shape))
    scores += count_scores(shape.window, spec.window, kMaskedBlock).largest * (10 + shape.compute_bytes);
  int64_t heads = 4 * h * spec.head_dim;  // what attention lets live at once, beside its input
  if (spec.kind == AttentionKind::latent) {
    const int64_t dn = spec.qk_nope_head_dim, dr = spec.qk_rope_head_dim, dv = spec.v_head_dim;
    const bool absorbs = is_absorbed(spec);
    const int64_t width = absorbs ? spec.kv_lora_rank + dr : std::max(dn + dr, dv);
    heads = h * (absorbs ? dn + dr + dv + 4 * width : 3 * dn + 2 * dr + dv + 4 * width);
  }
  const int64_t number = shape.tokens() * shape.compute_bytes;
  int64_t attention = scores + number * heads;
  if (shape.compute_bytes != shape.work_bytes)  // a norm's wide input and product
    attention += 2 * shape.tokens() * shape.work_bytes * std::max(e, spec.qk_norm ? h * spec.head_dim : 0);
  // Backward: gradients of the MLP's product and of both its factors.
  return {.kept = Keeper(config, spec, shape).total(),
          .backward = std::max(number * std::max(3 * f, f + 3 * e), attention),
          .forward = std::max(number * (2 * f + 4 * e), number * e + attention)};
}

}  // namespace cinch
