#include <ATen/ATen.h>

#include "attention/attention_kernel.h"
#include "attention/decode/kernel_layer.h"
#include "attention/decode/token_rows.h"
#include "attention/projection.h"

namespace cinch {

GroupedKernelLayer::GroupedKernelLayer(const GroupedQueryAttention& attention, DecodeBatch& batch,
                                       const KernelSearch& found)
    : KernelLayer(attention.spec(), batch, found),
      attention_(attention),
      keys_(batch, spec_.window, spec_.n_kv_heads, spec_.head_dim),
      values_(batch, spec_.window, spec_.n_kv_heads, spec_.head_dim) {
  const Rope& rope = attention.rope();
  const RotaryTable& table = batch.rotary(rope.inv_freq(batch.sizes().max_tokens), rope.attention_scaling());
  append_.pairs = CINCH_PAIRS_HALVES;
  append_.rotary_dim = static_cast<int32_t>(2 * table.cos.size(1));
  append_.cos = table.cos.const_data_ptr<float>();
  append_.sin = table.sin.const_data_ptr<float>();
  step_.keys.data = keys_.pages().const_data_ptr();
  step_.values.data = values_.pages().const_data_ptr();
  append_.keys = step_.keys;
  append_.values = step_.values;
}

void GroupedKernelLayer::append(const GroupedQueryAttention::Heads& heads, CinchCacheAppend append) const {
  append.q = token_rows(heads.q);
  append.k = token_rows(heads.k);
  append.v = token_rows(heads.v);
  rotate_to(heads.q, append);
  run(append);
}

at::Tensor GroupedKernelLayer::prefill(const at::Tensor& x, int64_t sequence, int64_t first) {
  const GroupedQueryAttention::Heads heads = attention_.project(x);
  const int64_t count = x.size(1), begin = first_seen(first);
  append(heads, append_of(sequence, count));
  AttentionRequest request;
  request.q = heads.q;
  request.k = keys_.rows(sequence, begin, first + count);
  request.v = values_.rows(sequence, begin, first + count);
  request.first_query = first;
  request.first_key = begin;
  request.scale = spec_.scale;
  request.window = spec_.window;
  request.softcap = spec_.softcap;
  return join_heads(attend(request));
}

at::Tensor GroupedKernelLayer::step(const at::Tensor& x) {
  const GroupedQueryAttention::Heads heads = attention_.project(x);
  append(heads, append_);
  const at::Tensor out = at::empty({x.size(0), 1, spec_.n_heads * spec_.head_dim}, x.options());
  CinchDecodeStep step = step_;
  step.q = heads.q.const_data_ptr();
  step.q_batch_stride = heads.q.stride(0);
  step.q_head_stride = heads.q.stride(1);
  step.out = out.mutable_data_ptr();
  run(step);
  return out;
}

void GroupedKernelLayer::fill(int64_t) {
  for (at::Tensor pages : memory()) pages.normal_();
}

CachedRows GroupedKernelLayer::cached(int64_t sequence) const {
  const int64_t end = batch_.host_lengths().at(static_cast<size_t>(sequence)), first = first_seen(end - 1);
  return {keys_.rows(sequence, first, end), values_.rows(sequence, first, end), first};
}

}  // namespace cinch
