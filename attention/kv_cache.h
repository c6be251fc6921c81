// The cache of one layer, grown in blocks: keys after RoPE and values, (B, K, S, D) each; of latent attention one
// shared head of [latent, rotated key, key scales], (B, 1, S, R+Dr+K), and values of no width.
#pragma once

#include <ATen/core/Tensor.h>

#include "attention/cache_format.h"
#include "attention/cache_precision.h"

namespace cinch {

class KvCache {
 public:
  KvCache() = default;
  /// Below 16 bits attention modules round what they append, each append in groups of its own. That emulates a packed
  /// cache for whole windows only: channels of a single token are groups of one number, which hardly change.
  explicit KvCache(CachePrecision precision) : precision_(precision) {}
  /// Entries of latent attention, which come back as a packed cache of this format gives them back, bit by bit where
  /// they are of bf16 or fp16: int8 and fp8 from the append on; int4 by pages of 64 tokens from their 64th token on, a
  /// token's page being that of its position.
  KvCache(CacheFormat format, CacheColumns columns) : format_(format), columns_(columns) {}

  /// Appends k, v (B, K, T, D) and returns all keys and values held, (B, K, S, D) each; their widths may differ. With
  /// `window` > 0 tokens that no later query can see may be dropped; first_position is the position of the oldest one
  /// returned. The views hold until the next append.
  struct View {
    at::Tensor k, v;
    int64_t first_position;
  };
  View append(const at::Tensor& k, const at::Tensor& v, int64_t window);
  /// All that is held; tensors are undefined before the first append.
  View view() const;

  int64_t tokens() const { return tokens_; }  // seen so far, held or dropped
  const CachePrecision& precision() const { return precision_; }
  /// Bytes of one token of one sequence in this cache, measured from the tensors held: the rounding is emulated in
  /// their type and saves nothing here (packed_bytes_per_token says what it would).
  int64_t bytes_per_token() const;
  /// Of the tensors held, with room for tokens to come.
  int64_t bytes_allocated() const;

 private:
  void reserve(const at::Tensor& k, const at::Tensor& v, int64_t added);
  void drop_unseen(int64_t window);
  /// Rounds what has been full since the cache had `before` tokens.
  void pack(int64_t before);

  at::Tensor k_, v_;  // (B, K, capacity, D); the tokens held are [begin_, begin_ + held_)
  CachePrecision precision_;
  CacheFormat format_ = CacheFormat::sixteen_bit;
  CacheColumns columns_;
  int64_t tokens_ = 0, held_ = 0, begin_ = 0;
};

/// The cache of one layer, of whole windows, at this precision.
KvCache window_cache(const AttentionSpec& spec, const CachePrecision& precision);

}  // namespace cinch
