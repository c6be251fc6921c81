#include "attention/cache_precision.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/errors.h"

namespace cinch {
namespace {

constexpr double kGroupBits = 32;  // scale and zero
constexpr double kMostHalf = 65504;

/// Scale or zero as 16 bits give it back. `half` (same shape, bool): in fp16, else bf16.
at::Tensor stored(const at::Tensor& x, const at::Tensor& half) {
  return at::where(half, x.to(at::kHalf).to(x.scalar_type()), x.to(at::kBFloat16).to(x.scalar_type()));
}

/// Every slice of x along `dim` is one group.
at::Tensor rounded_groups(const at::Tensor& x, int64_t dim, int bits) {
  const double levels = (1 << bits) - 1;
  const at::Tensor least = x.amin(dim, /*keepdim=*/true);
  const at::Tensor step = (x.amax(dim, /*keepdim=*/true) - least) / levels;
  const at::Tensor half = least.abs().le(kMostHalf).logical_and_(step.le(kMostHalf));
  const at::Tensor zero = stored(least, half), scale = stored(step, half);
  // A scale too small for 16 bits is 0, and then so is every number's distance from zero, as far as they can tell.
  const at::Tensor divisor = scale.masked_fill(scale == 0, 1);
  return ((x - zero) / divisor).round_().clamp_(0, levels).mul_(scale).add_(zero);
}

/// x in groups of precision.group along `dim`, the last one shorter where they do not come out even.
at::Tensor rounded_along(const at::Tensor& x, int64_t dim, const CachePrecision& precision) {
  if (precision.bits >= 16 || x.numel() == 0) return x;
  const at::Tensor wide = x.to(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const int64_t size = x.size(dim), even = size / precision.group * precision.group;
  std::vector<at::Tensor> parts;
  if (even > 0) {
    const at::Tensor groups = wide.narrow(dim, 0, even).unflatten(dim, {-1, precision.group});
    parts.push_back(rounded_groups(groups, dim + 1, precision.bits).flatten(dim, dim + 1));
  }
  if (even < size) parts.push_back(rounded_groups(wide.narrow(dim, even, size - even), dim, precision.bits));
  return (parts.size() == 1 ? parts.front() : at::cat(parts, dim)).to(x.scalar_type());
}

}  // namespace

double CachePrecision::bits_per_number() const { return bits_per_number(group); }

double CachePrecision::bits_per_number(int64_t width) const {
  if (bits >= 16 || width == 0) return bits;
  const int64_t groups = (width + group - 1) / group;
  return bits + kGroupBits * static_cast<double>(groups) / static_cast<double>(width);
}

std::string CachePrecision::name() const {
  if (served == CacheFormat::int8) return "int8-token";  // "int8" has scales of channels
  if (served != CacheFormat::sixteen_bit) return name_of(served);
  return rounds() ? fmt::format("int{}", bits) : "16 bit";
}

CachePrecision parse_cache_precision(const std::string& text) {
  for (const int bits : {8, 4, 3, 2}) {
    if (text == fmt::format("int{}", bits)) return {.bits = bits};
  }
  if (text == "16") return {};
  if (text == "int8-token") return {.served = CacheFormat::int8};
  if (text == "fp8") return {.served = CacheFormat::fp8};
  throw UsageError(fmt::format("unknown cache precision \"{}\"", text),
                   "known: int8, int4, int3, int2, 16, int8-token, fp8");
}

at::Tensor rounded_per_channel(const at::Tensor& x, const CachePrecision& precision) {
  return rounded_along(x, 2, precision);
}

at::Tensor rounded_per_token(const at::Tensor& x, const CachePrecision& precision) {
  return rounded_along(x, 3, precision);
}

double packed_bytes_per_token(const AttentionSpec& spec, const CachePrecision& precision) {
  if (precision.served != CacheFormat::sixteen_bit) return bytes_per_token(spec, precision.served);
  if (spec.kind == AttentionKind::grouped_query) {
    const auto numbers = static_cast<double>(spec.n_kv_heads * spec.head_dim);  // of keys, and of values
    return numbers * (precision.bits_per_number() + precision.bits_per_number(spec.head_dim)) / 8;
  }
  const double tail = spec.key_scale_tail ? 16 * static_cast<double>(spec.n_kv_heads) : 0;
  return (static_cast<double>(spec.kv_lora_rank + spec.qk_rope_head_dim) * precision.bits_per_number() + tail) / 8;
}

}  // namespace cinch
