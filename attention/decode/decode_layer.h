// The attention of one layer in a decode session: its cache, and one of the ways to attend to it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "attention/attention_module.h"
#include "attention/cache_format.h"
#include "attention/decode/decode_batch.h"
#include "attention/decode/decode_kernel.h"

namespace cinch {

/// What a cache gives back of tokens [first, first + S) of one sequence: keys and values (1, K, S, D); of latent
/// attention entries (1, 1, S, R+Dr+K) as keys, values undefined.
struct CachedRows {
  at::Tensor k, v;
  int64_t first = 0;
};

class DecodeLayer {
 public:
  virtual ~DecodeLayer() = default;

  /// Tokens first .. first+T-1 of one sequence, x (1, T, E): outputs of all heads before o_proj, (1, T, H*Dv). The
  /// batch's lengths say first + T already.
  virtual at::Tensor prefill(const at::Tensor& x, int64_t sequence, int64_t first) = 0;
  /// One token of every sequence, x (B, 1, E): (B, 1, H*Dv). The batch's lengths count it already.
  virtual at::Tensor step(const at::Tensor& x) = 0;

  /// For benchmarks: random numbers in the cache, as though every sequence had `tokens` tokens.
  virtual void fill(int64_t tokens) = 0;
  virtual CachedRows cached(int64_t sequence) const = 0;
  /// What one more token of one sequence takes, in bytes; with a cache format that is emulated, what it would take.
  virtual double bytes_per_token() const = 0;
  /// What a sequence takes beside its tokens: the open page of int4.
  virtual int64_t bytes_per_sequence() const = 0;
  virtual int64_t bytes_allocated() const = 0;
};

struct DecodeLayerOptions {
  DecodeKernel kernel = DecodeKernel::automatic;
  CacheFormat format = CacheFormat::sixteen_bit;  // of latent attention
};

struct ChosenDecodeLayer {
  std::unique_ptr<DecodeLayer> layer;
  DecodeChoice choice;
};
/// `attention` and `batch` must outlive it. Throws UnsupportedError where options.kernel is one that does not cover the
/// layer, with the rule.
ChosenDecodeLayer make_decode_layer(const AttentionModule& attention, DecodeBatch& batch,
                                    const DecodeLayerOptions& options);

}  // namespace cinch
