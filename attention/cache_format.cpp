#include "attention/cache_format.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "attention/kernels/decode/page_pack.h"
#include "core/errors.h"

namespace cinch {
namespace {

static_assert(kCachePage == CINCH_DECODE_PAGE);
static_assert(static_cast<int>(CacheFormat::int8) == CINCH_CACHE_INT8);
static_assert(static_cast<int>(CacheFormat::fp8) == CINCH_CACHE_FP8);
static_assert(static_cast<int>(CacheFormat::int4) == CINCH_CACHE_INT4);

decode::PageShape page_shape(CacheFormat format, const CacheColumns& columns, at::ScalarType type) {
  return {static_cast<int32_t>(format), type == at::kHalf ? CINCH_DECODE_FP16 : CINCH_DECODE_BF16,
          static_cast<int32_t>(columns.latent), static_cast<int32_t>(columns.rotary),
          static_cast<int32_t>(columns.key_scales)};
}

void check_rows(const at::Tensor& rows, const CacheColumns& columns) {
  if (rows.dim() == 3 && rows.size(2) == columns.all()) return;
  throw ShapeError(
      fmt::format("rows of a latent cache must be (B, T, {}), found {}", columns.all(), fmt::join(rows.sizes(), ", ")));
}
void check_type(at::ScalarType type) {
  if (type == at::kBFloat16 || type == at::kHalf) return;
  throw ShapeError(fmt::format("a packed cache is of bf16 or fp16 numbers, found {}", at::toString(type)));
}

int64_t pages_of(int64_t tokens, CacheFormat format) {
  return format == CacheFormat::int4 ? tokens / kCachePage : (tokens + kCachePage - 1) / kCachePage;
}

/// Of rows in fp32 on the CPU.
at::Tensor pack(const at::Tensor& rows, const decode::PageShape& shape) {
  const at::Tensor from = rows.contiguous();
  const int64_t tokens = rows.size(1), pages = pages_of(tokens, static_cast<CacheFormat>(shape.format));
  at::Tensor to = at::empty({rows.size(0), pages, shape.layout().page_bytes}, at::kByte);
  for (int64_t b = 0; b < rows.size(0); ++b) {
    for (int64_t page = 0; page < pages; ++page) {
      const int64_t first = page * kCachePage;
      decode::pack_page(shape, from.data_ptr<float>() + (b * tokens + first) * rows.size(2),
                        static_cast<int>(std::min(kCachePage, tokens - first)),
                        to.data_ptr<uint8_t>() + (b * pages + page) * to.size(2));
    }
  }
  return to;
}

/// In fp32.
at::Tensor unpack(const at::Tensor& pages, int64_t tokens, const decode::PageShape& shape) {
  const at::Tensor from = pages.contiguous();
  at::Tensor to = at::empty({pages.size(0), tokens, shape.row_width()}, at::kFloat);
  for (int64_t b = 0; b < pages.size(0); ++b) {
    for (int64_t token = 0; token < tokens; ++token) {
      decode::unpack_token(shape, from.data_ptr<uint8_t>() + (b * pages.size(1) + token / kCachePage) * pages.size(2),
                           static_cast<int>(token % kCachePage),
                           to.data_ptr<float>() + (b * tokens + token) * to.size(2));
    }
  }
  return to;
}

}  // namespace

CacheFormat parse_cache_format(const std::string& text) {
  if (text == "16") return CacheFormat::sixteen_bit;
  if (text == "8") return CacheFormat::int8;
  if (text == "fp8") return CacheFormat::fp8;
  if (text == "4") return CacheFormat::int4;
  throw UsageError(fmt::format("--kv-bits: unknown cache format \"{}\"", text), "known: 16, 8, fp8, 4");
}

std::string name_of(CacheFormat format) {
  switch (format) {
    case CacheFormat::int8:
      return "int8";
    case CacheFormat::fp8:
      return "fp8";
    case CacheFormat::int4:
      return "int4";
    default:
      return "16 bit";
  }
}

CacheColumns cache_columns(const AttentionSpec& spec) {
  if (spec.kind != AttentionKind::latent) throw ShapeError("only latent attention has a cache of latent rows");
  return {spec.kv_lora_rank, spec.qk_rope_head_dim, spec.key_scale_tail ? spec.n_kv_heads : 0};
}

int64_t page_bytes(CacheFormat format, const CacheColumns& columns) {
  if (format == CacheFormat::sixteen_bit) return 2 * kCachePage * columns.all();
  return page_shape(format, columns, at::kBFloat16).layout().page_bytes;
}

double bytes_per_token(const AttentionSpec& spec, CacheFormat format) {
  if (spec.kind == AttentionKind::grouped_query)
    return static_cast<double>(2 * 2 * spec.n_kv_heads * spec.head_dim);  // keys and values
  return static_cast<double>(page_bytes(format, cache_columns(spec))) / static_cast<double>(kCachePage);
}

at::Tensor packed_pages(const at::Tensor& rows, CacheFormat format, const CacheColumns& columns) {
  check_rows(rows, columns);
  check_type(rows.scalar_type());
  return pack(rows.to(at::kCPU, at::kFloat), page_shape(format, columns, rows.scalar_type())).to(rows.device());
}

at::Tensor unpacked_rows(const at::Tensor& pages, int64_t tokens, CacheFormat format, const CacheColumns& columns,
                         at::ScalarType type) {
  check_type(type);
  const decode::PageShape shape = page_shape(format, columns, type);
  if (pages.dim() != 3 || pages.scalar_type() != at::kByte || pages.size(2) != shape.layout().page_bytes ||
      pages.size(1) * kCachePage < tokens) {
    throw ShapeError(fmt::format("pages of {} tokens must be (B, pages, {}) bytes, found {}", tokens,
                                 shape.layout().page_bytes, fmt::join(pages.sizes(), ", ")));
  }
  return unpack(pages.to(at::kCPU), tokens, shape).to(pages.device(), type);
}

at::Tensor as_cached(const at::Tensor& rows, CacheFormat format, const CacheColumns& columns) {
  check_rows(rows, columns);
  const int64_t tokens = format == CacheFormat::int4 ? rows.size(1) / kCachePage * kCachePage : rows.size(1);
  if (format == CacheFormat::sixteen_bit || tokens == 0) return rows;
  const decode::PageShape shape = page_shape(format, columns, rows.scalar_type());
  const int64_t numbers = columns.latent + columns.rotary;
  const at::Tensor full = rows.narrow(1, 0, tokens).to(at::kCPU, at::kFloat);
  at::Tensor result = rows.clone();
  result.narrow(1, 0, tokens)
      .narrow(2, 0, numbers)
      .copy_(unpack(pack(full, shape), tokens, shape).narrow(2, 0, numbers));
  return result;
}

}  // namespace cinch
