#include "eval/bench/decode_case.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

namespace cinch {
namespace {

constexpr int64_t kScaleBytes = 2;

/// Of one sequence of a packed cache.
int64_t packed_bytes(const DecodeCase& decode, int64_t length) {
  const int64_t columns = decode.key_width();
  if (decode.format != CacheFormat::int4) return length * (columns + 2 * kScaleBytes);
  const int64_t full = length / kCachePage, open = length % kCachePage;
  return full * (kCachePage * ((columns + 1) / 2) + 2 * kScaleBytes * columns) + open * columns * 2;
}

}  // namespace

std::vector<int32_t> DecodeCase::lengths() const {
  std::vector<int32_t> lengths(static_cast<size_t>(batch), static_cast<int32_t>(context));
  if (!ragged) return lengths;
  std::mt19937 random(3);
  for (int32_t& length : lengths) {
    const auto spread = static_cast<int64_t>(random() % static_cast<uint64_t>(context));
    length = static_cast<int32_t>(std::max<int64_t>(context / 2 + spread, 1));
  }
  return lengths;
}

int64_t DecodeCase::longest() const {
  if (!ragged) return context;
  const std::vector<int32_t> all = lengths();
  return *std::max_element(all.begin(), all.end());
}

std::string text_of(const DecodeCase& decode) {
  const std::string size = decode.latent() ? fmt::format("{}+{}", decode.kv_lora_rank, decode.qk_rope_head_dim)
                                           : fmt::format("{}x{}", decode.n_kv_heads, decode.head_dim);
  const std::string bits = decode.format == CacheFormat::sixteen_bit ? "" : fmt::format(" {}", name_of(decode.format));
  const std::string values = decode.v_head_dim > 0 ? fmt::format(" Dv {}", decode.v_head_dim) : "";
  return fmt::format("{} {} H {}{} B {} S {}{}{}", decode.latent() ? "latent" : "grouped", size, decode.n_heads, bits,
                     decode.batch, decode.context, decode.ragged ? "~" : "", values);
}

int64_t cache_bytes(const DecodeCase& decode, int64_t element_bytes) {
  const int64_t row = decode.latent() ? decode.key_width() : 2 * decode.n_kv_heads * decode.head_dim;
  int64_t bytes = 0;
  for (const int64_t length : decode.lengths()) {
    bytes += decode.format == CacheFormat::sixteen_bit ? length * row * element_bytes : packed_bytes(decode, length);
  }
  return bytes;
}

int64_t io_bytes(const DecodeCase& decode, int64_t element_bytes) {
  const int64_t vectors = decode.batch * decode.n_heads * (decode.key_width() + decode.out_width());
  return (vectors + decode.n_heads * decode.v_head_dim * decode.kv_lora_rank) * element_bytes;
}

int64_t held_bytes(const DecodeCase& decode, int64_t element_bytes) {
  const int64_t pages = decode.batch * decode.pages_per_sequence();
  if (decode.format == CacheFormat::sixteen_bit) {
    const int64_t row = decode.latent() ? decode.key_width() : 2 * decode.n_kv_heads * decode.head_dim;
    return pages * kCachePage * row * element_bytes;
  }
  const int64_t open =
      decode.format == CacheFormat::int4 ? decode.batch * kCachePage * decode.key_width() * element_bytes : 0;
  return pages * page_bytes(decode.format, decode.columns()) + open;
}

}  // namespace cinch
