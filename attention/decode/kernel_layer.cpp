#include "attention/decode/kernel_layer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>

namespace cinch {
namespace {

constexpr int64_t kPage = CINCH_DECODE_PAGE;

/// The same cache for sequences from `sequence` on, where its pages are those of the sequences in turn.
CinchDecodeCache from_sequence(CinchDecodeCache cache, int64_t sequence, int64_t element_bytes) {
  if (cache.data != nullptr)
    cache.data = static_cast<const char*>(cache.data) + sequence * cache.page_stride * element_bytes;
  return cache;
}

}  // namespace

KernelLayer::KernelLayer(const AttentionSpec& spec, DecodeBatch& batch, const KernelSearch& found)
    : spec_(spec), batch_(batch), step_(found.step) {
  const at::Tensor& table = batch.block_table(spec.window);
  step_.block_table = table.const_data_ptr<int32_t>();
  step_.block_table_stride = table.stride(0);
  step_.lengths = batch.lengths().const_data_ptr<int32_t>();
  step_.plan = batch.plan(found.sizes, spec.window);
  batch.reserve_scratch(found.sizes.scratch_bytes);

  append_.kind = step_.kind;
  append_.type = step_.type;
  append_.cache_format = step_.cache_format;
  append_.batch = step_.batch;
  append_.tokens = 1;
  append_.n_heads = step_.n_heads;
  append_.n_kv_heads = step_.n_kv_heads;
  append_.head_dim = step_.head_dim;
  append_.kv_lora_rank = step_.kv_lora_rank;
  append_.qk_rope_head_dim = step_.qk_rope_head_dim;
  append_.key_scales = step_.key_scales;
  append_.block_table = step_.block_table;
  append_.block_table_stride = step_.block_table_stride;
  append_.lengths = step_.lengths;
}

double KernelLayer::bytes_per_token() const {
  const int64_t element = step_.cache_format == CINCH_CACHE_16BIT ? 2 : 1;
  const int64_t page = element * (step_.keys.page_stride + step_.values.page_stride);
  return static_cast<double>(page) / static_cast<double>(kPage);
}

int64_t KernelLayer::bytes_allocated() const {
  int64_t bytes = 0;
  for (const at::Tensor& tensor : memory()) bytes += static_cast<int64_t>(tensor.nbytes());
  return bytes;
}

int64_t KernelLayer::first_seen(int64_t first) const {
  return spec_.window > 0 ? std::max<int64_t>(0, first - (spec_.window - 1)) : 0;
}

CinchCacheAppend KernelLayer::append_of(int64_t sequence, int64_t tokens) const {
  CinchCacheAppend append = append_;
  append.batch = 1;
  append.tokens = static_cast<int32_t>(tokens);
  append.block_table += sequence * append.block_table_stride;
  append.lengths += sequence;
  append.open = from_sequence(append.open, sequence, 2);
  return append;
}

void KernelLayer::run(const CinchCacheAppend& append) const {
  std::array<char, 256> reason{};
  batch_.check(batch_.functions()->append(&append, batch_.stream(), reason.data(), reason.size()), "cinch_cache_append",
               reason.data());
}

void KernelLayer::run(CinchDecodeStep step) const {
  std::array<char, 256> reason{};
  step.scratch = batch_.scratch();
  batch_.check(batch_.functions()->run(&step, batch_.stream(), reason.data(), reason.size()), "cinch_decode_run",
               reason.data());
}

}  // namespace cinch
