// Layers of a decode session that decode kernels compute: new tokens go into paged caches by the append kernel, steps
// attend by the decode kernel, and prompts by attention_kernel.h over what the pages give back.
#pragma once

#include <memory>
#include <optional>

#include "attention/decode/decode_layer.h"
#include "attention/decode/page_pool.h"
#include "attention/decode/step_shape.h"
#include "attention/grouped_query_attention.h"
#include "attention/kernels/decode/append_abi.h"
#include "attention/latent_attention.h"

namespace cinch {

/// What both kinds share: `step_` and `append_` with every pointer that stays.
class KernelLayer : public DecodeLayer {
 public:
  double bytes_per_token() const override;
  int64_t bytes_per_sequence() const override { return 2 * step_.open.page_stride; }
  int64_t bytes_allocated() const override;

 protected:
  KernelLayer(const AttentionSpec& spec, DecodeBatch& batch, const KernelSearch& found);

  /// First token that queries from `first` on see.
  int64_t first_seen(int64_t first) const;
  /// append_ for `tokens` tokens of one sequence alone.
  CinchCacheAppend append_of(int64_t sequence, int64_t tokens) const;
  void run(const CinchCacheAppend& append) const;
  void run(CinchDecodeStep step) const;
  virtual std::vector<at::Tensor> memory() const = 0;

  const AttentionSpec& spec_;
  DecodeBatch& batch_;
  CinchDecodeStep step_;
  CinchCacheAppend append_{};
};

class GroupedKernelLayer : public KernelLayer {
 public:
  GroupedKernelLayer(const GroupedQueryAttention& attention, DecodeBatch& batch, const KernelSearch& found);

  at::Tensor prefill(const at::Tensor& x, int64_t sequence, int64_t first) override;
  at::Tensor step(const at::Tensor& x) override;
  void fill(int64_t tokens) override;
  CachedRows cached(int64_t sequence) const override;

 private:
  /// Into the cache; q is rotated in place.
  void append(const GroupedQueryAttention::Heads& heads, CinchCacheAppend append) const;
  std::vector<at::Tensor> memory() const override { return {keys_.pages(), values_.pages()}; }

  const GroupedQueryAttention& attention_;
  RowPool keys_, values_;
};

class LatentKernelLayer : public KernelLayer {
 public:
  LatentKernelLayer(const LatentAttention& attention, DecodeBatch& batch, const KernelSearch& found);

  at::Tensor prefill(const at::Tensor& x, int64_t sequence, int64_t first) override;
  at::Tensor step(const at::Tensor& x) override;
  void fill(int64_t tokens) override;
  CachedRows cached(int64_t sequence) const override;

 private:
  at::Tensor rows(int64_t sequence, int64_t first, int64_t end) const;
  /// Into the cache; the rotated q_rope goes to q (B, H, T, Dr), of any strides.
  void append(const LatentAttention::Heads& heads, const at::Tensor& q, CinchCacheAppend append) const;
  std::vector<at::Tensor> memory() const override;

  const LatentAttention& attention_;
  std::optional<RowPool> rows_;      // 16 bits
  std::optional<PackedPool> pages_;  // below
  at::Tensor key_maps_;              // (H, Dn, R)
  at::Tensor value_maps_;            // (H, Dv, R)
};

}  // namespace cinch
