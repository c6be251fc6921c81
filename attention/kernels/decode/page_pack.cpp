#include "attention/kernels/decode/page_pack.h"

#include <string.h>

#include <algorithm>

#include "attention/kernels/decode/page_codec.h"

namespace cinch::decode {
namespace {

constexpr int kTokens = CINCH_DECODE_PAGE;

uint16_t load_half(const uint8_t* from, int index) {
  uint16_t bits;
  memcpy(&bits, from + 2 * index, sizeof bits);
  return bits;
}
void store_half(uint8_t* to, int index, uint16_t bits) { memcpy(to + 2 * index, &bits, sizeof bits); }

/// Numbers [first, first + count) of a row share scale `index` of (64, 2).
void pack_numbers(const PageShape& shape, const float* row, int first, int count, uint8_t* codes, uint8_t* scales,
                  int index) {
  float magnitude = 0;
  for (int i = first; i < first + count; ++i) magnitude = fmaxf(magnitude, fabsf(row[i]));
  const uint16_t bits = token_scale(shape.format, magnitude);
  store_half(scales, index, bits);
  for (int i = first; i < first + count; ++i) codes[i] = token_code(shape.format, row[i], Bf16::to_float(bits));
}

void pack_channel(const PageShape& shape, const float* rows, int column, uint8_t* page) {
  const PageLayout layout = shape.layout();
  const int width = shape.row_width();
  float least = rows[column], most = least;
  for (int token = 1; token < kTokens; ++token) {
    least = fminf(least, rows[token * width + column]);
    most = fmaxf(most, rows[token * width + column]);
  }
  const ChannelScale channel = channel_scale(least, most);
  store_half(page + layout.scales, column, channel.scale);
  store_half(page + layout.zeros, column, channel.zero);
  for (int token = 0; token < kTokens; ++token) {
    const uint32_t code = channel_code(rows[token * width + column], channel_step(channel), channel_zero(channel));
    page[token * layout.row_bytes + column / 2] |= static_cast<uint8_t>(code << (column % 2 * 4));
  }
}

}  // namespace

void pack_page(const PageShape& shape, const float* rows, int tokens, uint8_t* page) {
  const PageLayout layout = shape.layout();
  memset(page, 0, static_cast<size_t>(layout.page_bytes));
  for (int token = 0; token < tokens; ++token) {
    const float* const row = rows + token * shape.row_width();
    if (shape.format != CINCH_CACHE_INT4) {
      uint8_t* const codes = page + token * layout.row_bytes;
      pack_numbers(shape, row, 0, shape.latent, codes, page + layout.scales, 2 * token);
      pack_numbers(shape, row, shape.latent, shape.rotary, codes, page + layout.scales, 2 * token + 1);
    }
    for (int i = 0; i < shape.key_scales; ++i) {
      const float scale = row[shape.columns() + i];
      store_half(page + layout.key_scales, token * shape.key_scales + i,
                 shape.type == CINCH_DECODE_BF16 ? Bf16::from_float(scale) : Fp16::from_float(scale));
    }
  }
  if (shape.format != CINCH_CACHE_INT4) return;
  for (int column = 0; column < shape.columns(); ++column) pack_channel(shape, rows, column, page);
}

void unpack_token(const PageShape& shape, const uint8_t* page, int token, float* row) {
  const PageLayout layout = shape.layout();
  const uint8_t* const codes = page + token * layout.row_bytes;
  for (int i = 0; i < shape.columns(); ++i) {
    if (shape.format == CINCH_CACHE_INT4) {
      const ChannelScale channel{load_half(page + layout.scales, i), load_half(page + layout.zeros, i)};
      row[i] = channel_number(codes[i / 2] >> (i % 2 * 4) & 15u, channel_step(channel), channel_zero(channel));
    } else {
      const uint16_t scale = load_half(page + layout.scales, 2 * token + (i < shape.latent ? 0 : 1));
      row[i] = token_number(shape.format, codes[i], Bf16::to_float(scale));
    }
  }
  for (int i = 0; i < shape.key_scales; ++i) {
    const uint16_t bits = load_half(page + layout.key_scales, token * shape.key_scales + i);
    row[shape.columns() + i] = shape.type == CINCH_DECODE_BF16 ? Bf16::to_float(bits) : Fp16::to_float(bits);
  }
}

}  // namespace cinch::decode
