#include "eval/bench/decode_case.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "attention/kernels/decode/page_layout.h"

namespace cinch {
namespace {

DecodeCase latent(CacheFormat format, int64_t batch, int64_t context, int64_t rank, int64_t rope_dim) {
  return {.format = format,
          .batch = batch,
          .context = context,
          .n_heads = 16,
          .kv_lora_rank = rank,
          .qk_rope_head_dim = rope_dim};
}

TEST(DecodeCase, SixteenBitBytes) {
  const DecodeCase mla = latent(CacheFormat::sixteen_bit, 3, 100, 96, 32);
  EXPECT_EQ(cache_bytes(mla), 3 * 100 * (96 + 32) * 2);
  EXPECT_EQ(cache_bytes(mla, 4), 3 * 100 * (96 + 32) * 4);
  EXPECT_EQ(held_bytes(mla), 3 * 128 * (96 + 32) * 2);  // two pages of 64 each
  EXPECT_EQ(io_bytes(mla), 3 * 16 * (128 + 96) * 2);
  const DecodeCase gqa{
      .kind = AttentionKind::grouped_query, .batch = 2, .context = 64, .n_heads = 9, .n_kv_heads = 3, .head_dim = 64};
  EXPECT_EQ(cache_bytes(gqa), 2 * 64 * 2 * 3 * 64 * 2);
  EXPECT_EQ(held_bytes(gqa), cache_bytes(gqa));
  EXPECT_EQ(io_bytes(gqa), 2 * 9 * (64 + 64) * 2);
}

TEST(DecodeCase, TheValueMapIsRead) {
  DecodeCase decode = latent(CacheFormat::sixteen_bit, 1, 64, 64, 32);
  decode.v_head_dim = 128;
  EXPECT_EQ(io_bytes(decode), (16 * (96 + 128) + 16 * 128 * 64) * 2);
  EXPECT_EQ(decode.out_width(), 128);
}

TEST(DecodeCase, EightBitBytes) {
  for (const CacheFormat format : {CacheFormat::int8, CacheFormat::fp8}) {
    // 160 codes and two scales of two bytes per token, whether the page is full or not.
    const DecodeCase decode = latent(format, 2, 70, 128, 32);
    EXPECT_EQ(cache_bytes(decode), 2 * 70 * (160 + 4));
    EXPECT_EQ(held_bytes(decode), 2 * 2 * 64 * (160 + 4));
  }
}

TEST(DecodeCase, FourBitBytes) {
  // One full page: half a byte per number, and scale and zero of two bytes per channel; six tokens still in 16 bits.
  const DecodeCase decode = latent(CacheFormat::int4, 2, 70, 128, 32);
  EXPECT_EQ(cache_bytes(decode), 2 * (64 * 80 + 160 * 4 + 6 * 160 * 2));
  EXPECT_EQ(held_bytes(decode), 2 * (2 * (64 * 80 + 160 * 4) + 64 * 160 * 2));
  EXPECT_EQ(cache_bytes(latent(CacheFormat::int4, 1, 63, 128, 32)), 63 * 160 * 2);
}

TEST(DecodeCase, FullPagesAreThePagesOfTheirLayout) {
  // Sizes whose parts need no padding to 16 bytes.
  for (const CacheFormat format : {CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4}) {
    for (const auto& [rank, rope_dim] : {std::pair{64, 32}, {96, 64}, {512, 64}}) {
      const int32_t page = decode::page_layout(static_cast<int32_t>(format), rank + rope_dim, 0).page_bytes;
      EXPECT_EQ(cache_bytes(latent(format, 5, 3 * 64, rank, rope_dim)), 5 * 3 * page) << rank;
    }
  }
  // 72 + 8 columns of 4 bits are 40 bytes in rows of 48: padding is held and not counted as read.
  const DecodeCase padded = latent(CacheFormat::int4, 1, 64, 72, 8);
  EXPECT_EQ(cache_bytes(padded), 64 * 40 + 80 * 4);
  EXPECT_EQ(decode::page_layout(CINCH_CACHE_INT4, 80, 0).page_bytes, 64 * 48 + 80 * 4);
}

TEST(DecodeCase, RaggedLengths) {
  DecodeCase decode = latent(CacheFormat::sixteen_bit, 200, 100, 64, 32);
  EXPECT_EQ(decode.lengths(), std::vector<int32_t>(200, 100));
  decode.ragged = true;
  const std::vector<int32_t> lengths = decode.lengths();
  EXPECT_EQ(lengths, decode.lengths()) << "the same each time";
  const auto [least, most] = std::minmax_element(lengths.begin(), lengths.end());
  EXPECT_GE(*least, 50);
  EXPECT_LT(*most, 150);
  EXPECT_LT(*least, 60);
  EXPECT_GT(*most, 140);
  EXPECT_EQ(decode.longest(), *most);
  int64_t tokens = 0;
  for (const int32_t length : lengths) tokens += length;
  EXPECT_EQ(cache_bytes(decode), tokens * 96 * 2);
  decode.context = 1;
  for (const int32_t length : decode.lengths()) EXPECT_EQ(length, 1);
}

TEST(DecodeCase, Names) {
  EXPECT_EQ(text_of(latent(CacheFormat::int4, 4, 2048, 128, 64)), "latent 128+64 H 16 int4 B 4 S 2048");
  DecodeCase gqa{.kind = AttentionKind::grouped_query, .n_heads = 32, .n_kv_heads = 8, .head_dim = 128};
  gqa.ragged = true;
  EXPECT_EQ(text_of(gqa), "grouped 8x128 H 32 B 1 S 1024~");
}

}  // namespace
}  // namespace cinch
