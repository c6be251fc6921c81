#include "attention/decode/unpack_pages.h"

#include <ATen/ATen.h>

#include "attention/kernels/decode/page_layout.h"

namespace cinch {
namespace {

/// `count` numbers of every page from byte `offset` on, (n, count), as `type`.
at::Tensor numbers(const at::Tensor& pages, int64_t offset, int64_t count, at::ScalarType type) {
  const auto bytes = count * static_cast<int64_t>(at::elementSize(type));
  return pages.narrow(1, offset, bytes).view(type);
}

/// (n, 64, R+Dr) fp32
at::Tensor by_token(const at::Tensor& pages, CacheFormat format, const decode::PageLayout& layout,
                    const CacheColumns& columns) {
  const at::ScalarType type = format == CacheFormat::int8 ? at::kChar : at::kFloat8_e4m3fn;
  const at::Tensor codes = numbers(pages, 0, kCachePage * layout.row_bytes, type).unflatten(1, {kCachePage, -1});
  const at::Tensor scales =
      numbers(pages, layout.scales, 2 * kCachePage, at::kBFloat16).to(at::kFloat).unflatten(1, {kCachePage, 2});
  const at::Tensor rows = codes.narrow(2, 0, columns.latent + columns.rotary).to(at::kFloat);
  rows.narrow(2, 0, columns.latent).mul_(scales.narrow(2, 0, 1));
  rows.narrow(2, columns.latent, columns.rotary).mul_(scales.narrow(2, 1, 1));
  return rows;
}

/// The same of int4.
at::Tensor by_channel(const at::Tensor& pages, const decode::PageLayout& layout, int64_t width) {
  const at::Tensor bytes = numbers(pages, 0, kCachePage * layout.row_bytes, at::kByte).unflatten(1, {kCachePage, -1});
  const at::Tensor codes = at::stack({bytes.bitwise_and(15), bytes.bitwise_right_shift(4)}, 3).flatten(2, 3);
  const at::Tensor scale_bits = numbers(pages, layout.scales, width, at::kShort);
  const at::Tensor wide = scale_bits.lt(0);  // bf16, not fp16
  const auto stored = [&](const at::Tensor& bits) {
    return at::where(wide, bits.bitwise_and(0x7fff).view(at::kBFloat16).to(at::kFloat),
                     bits.view(at::kHalf).to(at::kFloat));
  };
  const at::Tensor zero_bits = numbers(pages, layout.zeros, width, at::kShort);
  const at::Tensor zeros =
      at::where(wide, zero_bits.view(at::kBFloat16).to(at::kFloat), zero_bits.view(at::kHalf).to(at::kFloat));
  // The product is exact.
  return codes.narrow(2, 0, width).to(at::kFloat).mul_(stored(scale_bits).unsqueeze(1)).add_(zeros.unsqueeze(1));
}

}  // namespace

at::Tensor unpack_pages(const at::Tensor& pages, CacheFormat format, const CacheColumns& columns, at::ScalarType type) {
  const int64_t width = columns.latent + columns.rotary;
  const decode::PageLayout layout = decode::page_layout(static_cast<int32_t>(format), static_cast<int32_t>(width),
                                                        static_cast<int32_t>(columns.key_scales));
  at::Tensor rows =
      (format == CacheFormat::int4 ? by_channel(pages, layout, width) : by_token(pages, format, layout, columns))
          .to(type);
  if (columns.key_scales > 0) {
    const at::Tensor scales = numbers(pages, layout.key_scales, kCachePage * columns.key_scales, type);
    rows = at::cat({rows, scales.unflatten(1, {kCachePage, columns.key_scales})}, 2);
  }
  return rows.flatten(0, 1);
}

}  // namespace cinch
