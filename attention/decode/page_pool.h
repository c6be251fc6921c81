// The pages of one layer's cache for all sequences of a session, and reading tokens back from them.
#pragma once

#include <ATen/core/Tensor.h>

#include "attention/cache_format.h"
#include "attention/decode/decode_batch.h"

namespace cinch {

/// Pages of rows in the batch's type: keys or values of grouped-query attention, or entries of a latent cache.
class RowPool {
 public:
  /// Pages (B * pages per sequence, heads, 64, width).
  RowPool(DecodeBatch& batch, int64_t window, int64_t heads, int64_t width);

  const at::Tensor& pages() const { return pages_; }
  /// Tokens [first, end) of a sequence: (1, heads, end - first, width), a copy.
  at::Tensor rows(int64_t sequence, int64_t first, int64_t end) const;

 private:
  at::Tensor pages_;
  at::Tensor table_;  // (B, pages) int32
};

/// Pages of bytes of a latent cache below 16 bits (kernels/decode/page_layout.h).
class PackedPool {
 public:
  PackedPool(DecodeBatch& batch, int64_t window, CacheFormat format, const CacheColumns& columns);

  const at::Tensor& pages() const { return pages_; }  // (B * pages per sequence, page bytes) uint8
  /// int4: (B, 64, padded row) in the batch's type, else undefined.
  const at::Tensor& open() const { return open_; }
  /// Entries of tokens [first, end) of a sequence that has `end` tokens: (1, 1, end - first, columns).
  at::Tensor rows(int64_t sequence, int64_t first, int64_t end) const;
  /// Random numbers in all pages.
  void fill();

 private:
  at::Tensor pages_, open_, table_;
  at::ScalarType dtype_;
  CacheFormat format_;
  CacheColumns columns_;
};

}  // namespace cinch
