#include <ATen/ATen.h>

#include <cstdint>

#include "attention/decode/kernel_layer.h"
#include "attention/decode/token_rows.h"

namespace cinch {
namespace {

constexpr uintptr_t kAlignment = 16;  // of the kernels' pointers, in bytes

/// Weights that are mapped from a file may begin anywhere.
at::Tensor aligned(const at::Tensor& x) {
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % kAlignment == 0 ? x : x.clone();
}

}  // namespace

LatentKernelLayer::LatentKernelLayer(const LatentAttention& attention, DecodeBatch& batch, const KernelSearch& found)
    : KernelLayer(attention.spec(), batch, found), attention_(attention) {
  const at::Tensor maps = aligned(attention.weights().kv_b_proj).unflatten(0, {spec_.n_heads, -1});  // (H, Dn+Dv, R)
  key_maps_ = maps.narrow(1, 0, spec_.qk_nope_head_dim);
  value_maps_ = maps.narrow(1, spec_.qk_nope_head_dim, spec_.v_head_dim);
  if (step_.v_head_dim > 0) step_.value_map = value_maps_.const_data_ptr();

  const auto format = static_cast<CacheFormat>(step_.cache_format);
  if (format == CacheFormat::sixteen_bit) {
    rows_.emplace(batch, spec_.window, 1, padded_row(spec_));
    step_.keys.data = rows_->pages().const_data_ptr();
  } else {
    pages_.emplace(batch, spec_.window, format, cache_columns(spec_));
    step_.keys.data = pages_->pages().const_data_ptr();
    if (pages_->open().defined()) step_.open.data = pages_->open().const_data_ptr();
  }
  append_.keys = step_.keys;
  append_.open = step_.open;

  const RotaryTable& table = batch.rotary(spec_.rope_inv_freq, spec_.rotary_scaling);
  append_.pairs = CINCH_PAIRS_NEIGHBOURS;
  append_.rotary_dim = step_.qk_rope_head_dim;
  append_.cos = table.cos.const_data_ptr<float>();
  append_.sin = table.sin.const_data_ptr<float>();
}

std::vector<at::Tensor> LatentKernelLayer::memory() const {
  if (rows_) return {rows_->pages()};
  if (pages_->open().defined()) return {pages_->pages(), pages_->open()};
  return {pages_->pages()};
}

at::Tensor LatentKernelLayer::rows(int64_t sequence, int64_t first, int64_t end) const {
  if (pages_) return pages_->rows(sequence, first, end);
  return rows_->rows(sequence, first, end).narrow(3, 0, spec_.kv_elements());
}

void LatentKernelLayer::append(const LatentAttention::Heads& heads, const at::Tensor& q,
                               CinchCacheAppend append) const {
  append.q = token_rows(heads.q_rope);
  append.k = token_rows(heads.k_rope.unsqueeze(1));
  append.v = token_rows(heads.latent.unsqueeze(1));
  if (spec_.key_scale_tail) append.scales = token_rows(heads.key_scale.unsqueeze(1));
  rotate_to(q, append);
  run(append);
}

at::Tensor LatentKernelLayer::prefill(const at::Tensor& x, int64_t sequence, int64_t first) {
  const LatentAttention::Heads heads = attention_.project(x);
  const int64_t count = x.size(1), begin = first_seen(first);
  const at::Tensor q_rope = at::empty(heads.q_rope.sizes(), x.options());
  append(heads, q_rope, append_of(sequence, count));
  return attention_.attend_to({heads.q_nope, q_rope, rows(sequence, begin, first + count), first, begin, {}});
}

at::Tensor LatentKernelLayer::step(const at::Tensor& x) {
  const LatentAttention::Heads heads = attention_.project(x);
  const int64_t batch = x.size(0), r = spec_.kv_lora_rank, dr = spec_.qk_rope_head_dim;
  const at::Tensor q = at::empty({batch, spec_.n_heads, 1, r + dr}, x.options());
  append(heads, q.narrow(3, r, dr), append_);
  // Queries absorb the keys' map: (H, B, Dn) x (H, Dn, R).
  at::Tensor absorbed = q.select(2, 0).narrow(2, 0, r).transpose(0, 1);
  at::bmm_out(absorbed, heads.q_nope.select(2, 0).transpose(0, 1), key_maps_);
  const bool mapped = step_.v_head_dim > 0;
  const at::Tensor out = at::empty({batch, 1, spec_.n_heads * (mapped ? spec_.v_head_dim : r)}, x.options());
  CinchDecodeStep step = step_;
  step.q = q.const_data_ptr();
  step.out = out.mutable_data_ptr();
  run(step);
  if (mapped) return out;
  const at::Tensor latent = out.unflatten(2, {spec_.n_heads, r}).select(1, 0).transpose(0, 1);  // (H, B, R)
  return at::bmm(latent, value_maps_.transpose(1, 2)).transpose(0, 1).flatten(1).unsqueeze(1);
}

void LatentKernelLayer::fill(int64_t) {
  if (pages_) return pages_->fill();
  at::Tensor pages = rows_->pages();
  pages.normal_();
}

CachedRows LatentKernelLayer::cached(int64_t sequence) const {
  const int64_t end = batch_.host_lengths().at(static_cast<size_t>(sequence)), first = first_seen(end - 1);
  return {rows(sequence, first, end), {}, first};
}

}  // namespace cinch
