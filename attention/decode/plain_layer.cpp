#include "attention/decode/plain_layer.h"

#include <ATen/ATen.h>

#include "attention/decode/step_shape.h"

namespace cinch {

PlainLayer::PlainLayer(const AttentionModule& attention, const DecodeBatch& batch, CacheFormat format)
    : attention_(attention), batch_(batch), format_(format) {
  const KvCache empty =
      format == CacheFormat::sixteen_bit ? KvCache() : KvCache(format, cache_columns(attention.spec()));
  caches_.assign(static_cast<size_t>(batch.sizes().sequences), empty);
}

at::Tensor PlainLayer::prefill(const at::Tensor& x, int64_t sequence, int64_t first) {
  return attention_.head_outputs(x, first, batch_.sizes().max_tokens, &caches_.at(static_cast<size_t>(sequence)));
}

at::Tensor PlainLayer::step(const at::Tensor& x) {
  std::vector<at::Tensor> outputs;
  for (int64_t sequence = 0; sequence < x.size(0); ++sequence)
    outputs.push_back(prefill(x.narrow(0, sequence, 1), sequence, caches_[static_cast<size_t>(sequence)].tokens()));
  return outputs.size() == 1 ? outputs.front() : at::cat(outputs);
}

void PlainLayer::fill(int64_t tokens) {
  const AttentionSpec& spec = attention_.spec();
  const bool latent = spec.kind == AttentionKind::latent;
  const auto options = at::TensorOptions(batch_.sizes().dtype).device(batch_.sizes().device);
  for (KvCache& cache : caches_) {
    const at::Tensor k =
        at::randn({1, latent ? 1 : spec.n_kv_heads, tokens, latent ? spec.kv_elements() : spec.head_dim}, options);
    cache.append(k, latent ? k.narrow(3, 0, 0) : at::randn_like(k), spec.window);
  }
}

CachedRows PlainLayer::cached(int64_t sequence) const {
  const KvCache::View view = caches_.at(static_cast<size_t>(sequence)).view();
  return {view.k, view.v, view.first_position};
}

double PlainLayer::bytes_per_token() const {
  if (format_ != CacheFormat::sixteen_bit) return cinch::bytes_per_token(attention_.spec(), format_);
  return static_cast<double>(attention_.spec().kv_elements()) *
         static_cast<double>(at::elementSize(batch_.sizes().dtype));
}

int64_t PlainLayer::bytes_per_sequence() const {
  return format_ == CacheFormat::int4 ? 2 * kCachePage * padded_row(attention_.spec()) : 0;
}

int64_t PlainLayer::bytes_allocated() const {
  int64_t bytes = 0;
  for (const KvCache& cache : caches_) bytes += cache.bytes_allocated();
  return bytes;
}

}  // namespace cinch
