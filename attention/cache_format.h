// Formats of latent caches that the decode kernels read: 16 bits, or pages of fewer bits
// (kernels/decode/page_layout.h). Grouped-query attention keeps 16 bits. Unlike CachePrecision, which emulates any
// number of bits in groups of any size, these are exactly what is served: packed bytes, and the numbers that come out
// of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "attention/attention_spec.h"

namespace cinch {

/// int8, fp8 (e4m3): a scale for each token's latent and one for its rotary keys. int4: scale and zero of each channel
/// over the 64 tokens of a page. Values are those of CinchCacheFormat.
enum class CacheFormat : int32_t { sixteen_bit = 0, int8 = 1, fp8 = 2, int4 = 3 };

constexpr int64_t kCachePage = 64;  // tokens

/// Of --kv-bits: "16", "8", "fp8", "4". Throws UsageError naming them.
CacheFormat parse_cache_format(const std::string& text);
/// "16 bit", "int8", "fp8", "int4"
std::string name_of(CacheFormat format);

/// Columns of a cached row: [latent (R) | rotary keys (Dr) | key scales (K, or none)].
struct CacheColumns {
  int64_t latent = 0, rotary = 0, key_scales = 0;

  int64_t all() const { return latent + rotary + key_scales; }
  friend bool operator==(const CacheColumns&, const CacheColumns&) = default;
};
/// Throws ShapeError for grouped-query attention.
CacheColumns cache_columns(const AttentionSpec& spec);

/// Of one page.
int64_t page_bytes(CacheFormat format, const CacheColumns& columns);
/// Bytes that one token takes in one layer's cache: of full pages, with their scales, zeros and padding; at 16 bits its
/// row. Grouped-query attention: 16 bits whatever the format.
double bytes_per_token(const AttentionSpec& spec, CacheFormat format);

/// rows (B, T, columns) in bf16 or fp16 as pages (B, pages, page_bytes) of bytes, `format` below 16 bits. int8 and fp8:
/// slots beyond T are 0. int4: full pages only, the last T % 64 tokens are left out. Throws ShapeError for other
/// shapes.
at::Tensor packed_pages(const at::Tensor& rows, CacheFormat format, const CacheColumns& columns);
/// What the pages' first T tokens hold, (B, T, columns) in `type`, bf16 or fp16: numbers in fp32, rounded once.
at::Tensor unpacked_rows(const at::Tensor& pages, int64_t tokens, CacheFormat format, const CacheColumns& columns,
                         at::ScalarType type);

/// rows (B, T, columns) as such a cache gives them back, in their own type: the bits of unpacked_rows(packed_pages)
/// where that is bf16 or fp16; fp32 and fp64 keep the numbers of the pages in fp32. Key scales stay as they are. int4:
/// full pages count from row 0, the last T % 64 rows stay as they are (the open page holds them in 16 bits).
at::Tensor as_cached(const at::Tensor& rows, CacheFormat format, const CacheColumns& columns);

}  // namespace cinch
