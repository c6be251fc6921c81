// One case of the decode benchmarks: a layer's attention for one new token of every sequence, and the bytes that it
// must move. Letters of docs/architecture; Dk and Dv': widths of keys and of values in the cache.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attention/attention_spec.h"
#include "attention/cache_format.h"

namespace cinch {

struct DecodeCase {
  AttentionKind kind = AttentionKind::latent;
  CacheFormat format = CacheFormat::sixteen_bit;  // below 16 bits: latents
  int64_t batch = 1, context = 1024;
  bool ragged = false;  // sequences of 1/2 to 3/2 of `context` tokens instead of exactly so many
  int64_t n_heads = 32, n_kv_heads = 1;
  int64_t head_dim = 0;                            // grouped
  int64_t kv_lora_rank = 0, qk_rope_head_dim = 0;  // latent
  int64_t v_head_dim = 0;  // latent: the result goes through a map per head to values of that width; 0: stays latent

  bool latent() const { return kind == AttentionKind::latent; }
  int64_t group_size() const { return n_heads / n_kv_heads; }
  int64_t key_width() const { return latent() ? kv_lora_rank + qk_rope_head_dim : head_dim; }  // Dk
  int64_t value_width() const { return latent() ? kv_lora_rank : head_dim; }                   // Dv'
  int64_t out_width() const { return v_head_dim > 0 ? v_head_dim : value_width(); }
  CacheColumns columns() const { return {kv_lora_rank, qk_rope_head_dim, 0}; }
  /// Tokens of each sequence (B), the same each time.
  std::vector<int32_t> lengths() const;
  int64_t longest() const;
  int64_t pages_per_sequence() const { return (longest() + kCachePage - 1) / kCachePage; }

  friend bool operator==(const DecodeCase&, const DecodeCase&) = default;
};

/// "latent 128+64 H 32 int8 B 64 S 8192 Dv 128", "grouped 8x128 H 32 B 1 S 2048~"
std::string text_of(const DecodeCase& decode);

/// What a step must read of the cache, without padding: numbers of the visible tokens in `element_bytes` each, or below
/// 16 bits their codes with the scales and zeros that belong to them (page_layout.h), and of int4 the rows of the open
/// page in 16 bits.
int64_t cache_bytes(const DecodeCase& decode, int64_t element_bytes = 2);
/// Queries, results and the value map.
int64_t io_bytes(const DecodeCase& decode, int64_t element_bytes = 2);
/// What the pages of the cache take, open pages included.
int64_t held_bytes(const DecodeCase& decode, int64_t element_bytes = 2);

}  // namespace cinch
