// Caches of fewer bits than 16, emulated: entries are rounded to what a packed cache would give back and go on as
// ordinary numbers. Asymmetric groups as in KIVI (Liu et al. 2024, arXiv:2402.02750): keys per channel over adjacent
// tokens, values per token over adjacent numbers of a head.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "attention/attention_spec.h"
#include "attention/cache_format.h"

namespace cinch {

/// How a cache stores its numbers. Below 16 bits each group of numbers has a 16-bit scale and a 16-bit zero beside it;
/// at 16 bits nothing is rounded.
struct CachePrecision {
  int bits = 16;
  int64_t group = 64;  // numbers
  /// Other than 16 bits: latent rows are what a cache of this format gives back (cache_format.h), `bits` is 16, and
  /// grouped-query attention rounds nothing.
  CacheFormat served = CacheFormat::sixteen_bit;

  bool rounds() const { return bits < 16 || served != CacheFormat::sixteen_bit; }
  /// Bits that one number takes with its share of scale and zero: bits + 32 / group, in whole groups.
  double bits_per_number() const;
  /// The same in rows of `width` numbers that are grouped by themselves: a row has ceil(width / group) groups.
  double bits_per_number(int64_t width) const;
  /// "16 bit", "int4", "int8-token"
  std::string name() const;

  friend bool operator==(const CachePrecision&, const CachePrecision&) = default;
};

/// "int8", "int4", "int3", "int2", "16", and those that are served: "int8-token", "fp8". Throws UsageError naming them.
CachePrecision parse_cache_precision(const std::string& text);

/// x (B, K, S, D) as a cache of this precision gives it back, in x's type: each channel in groups of `group` adjacent
/// tokens. The last tokens, when fewer, are a group of their own.
///
/// A group becomes zero + scale * n with n in 0 .. 2^bits - 1, zero its least number and scale its range / (2^bits -
/// 1), both rounded to fp16, or to bf16 in groups where one of them is beyond fp16 (attention sinks can have huge
/// keys). A number moves by at most scale / 2, plus what rounding scale and zero moves the ends of the range; a group
/// of equal numbers becomes that number in fp16 (bf16). Finite numbers stay finite where their range fits x's type
/// (fp32 for half types).
at::Tensor rounded_per_channel(const at::Tensor& x, const CachePrecision& precision);

/// The same with each token in groups of `group` adjacent numbers of a head (the last axis).
at::Tensor rounded_per_token(const at::Tensor& x, const CachePrecision& precision);

/// Bytes that one token takes in one layer's packed cache: grouped-query keys and the latent and rotated key of latent
/// attention in full groups of tokens, values in the groups that their heads divide into, key scales at 16 bits. Served
/// formats: with the padding of their pages.
double packed_bytes_per_token(const AttentionSpec& spec, const CachePrecision& precision);

}  // namespace cinch
