#include "attention/kernel_probe.h"

#include <ATen/ATen.h>

#include "attention/latent_attention.h"

namespace cinch {
namespace {

/// KV heads and widths of the request's tensors.
struct Widths {
  int64_t kv_heads, key, value;
};

Widths widths_of(const AttentionSpec& spec, const KernelProbe& probe) {
  if (spec.kind == AttentionKind::grouped_query) return {spec.n_kv_heads, spec.head_dim, spec.head_dim};
  if (cheaper_latent_form(spec, probe.queries, probe.keys) == LatentForm::unabsorbed)
    return {spec.n_heads, spec.qk_nope_head_dim + spec.qk_rope_head_dim, spec.v_head_dim};
  // With key scales one scaled copy of the shared key for each KV head.
  return {spec.key_scale_tail ? spec.n_kv_heads : 1, spec.kv_lora_rank + spec.qk_rope_head_dim, spec.kv_lora_rank};
}

}  // namespace

AttentionRequest probe_request(const AttentionSpec& spec, const KernelProbe& probe) {
  const Widths widths = widths_of(spec, probe);
  const auto tensor = [&](int64_t heads, int64_t tokens, int64_t width) {
    return at::empty({probe.batch, heads, tokens, width}, at::TensorOptions(probe.dtype).device(probe.device))
        .set_requires_grad(probe.recorded);
  };
  AttentionRequest request;
  request.q = tensor(spec.n_heads, probe.queries, widths.key);
  request.k = tensor(widths.kv_heads, probe.keys, widths.key);
  request.v = tensor(widths.kv_heads, probe.keys, widths.value);
  request.first_query = probe.keys - probe.queries;
  request.scale = spec.scale;
  request.window = spec.window;
  request.softcap = spec.softcap;
  return request;
}

}  // namespace cinch
