#include "eval/bench/case_grid.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <set>
#include <string>

#include "core/errors.h"

namespace cinch {
namespace {

int64_t count_of(const std::vector<DecodeCase>& cases, const std::function<bool(const DecodeCase&)>& is) {
  return std::count_if(cases.begin(), cases.end(), is);
}

TEST(CaseGrid, HoldsWhatIsPromised) {
  const std::vector<DecodeCase> cases = decode_cases({});
  for (const int64_t rank : {64, 96, 128, 192, 256, 320, 384, 448, 512}) {
    for (const int64_t rope_dim : {32, 64}) {
      for (const int64_t batch : {1, 16, 64}) {
        for (const int64_t context : {2048, 8192, 32768}) {
          const DecodeCase wanted{
              .batch = batch, .context = context, .n_heads = 32, .kv_lora_rank = rank, .qk_rope_head_dim = rope_dim};
          EXPECT_EQ(std::count(cases.begin(), cases.end(), wanted), 1) << text_of(wanted);
        }
      }
    }
  }
  for (const auto& [heads, kv_heads, head_dim] : {std::tuple{32, 8, 128}, {32, 4, 128}, {9, 3, 64}, {32, 1, 128}}) {
    EXPECT_EQ(count_of(cases,
                       [&](const DecodeCase& c) {
                         return !c.latent() && c.n_heads == heads && c.n_kv_heads == kv_heads &&
                                c.head_dim == head_dim && !c.ragged;
                       }),
              9);
  }
  for (const CacheFormat format : {CacheFormat::int8, CacheFormat::fp8, CacheFormat::int4})
    EXPECT_EQ(count_of(cases, [&](const DecodeCase& c) { return c.format == format; }), 2 * 9);
  EXPECT_EQ(count_of(cases, [](const DecodeCase& c) { return c.ragged; }), 3);
  EXPECT_EQ(count_of(cases, [](const DecodeCase& c) { return c.v_head_dim > 0; }), 2);
  std::set<std::string> names;
  for (const DecodeCase& decode : cases) names.insert(text_of(decode));
  EXPECT_EQ(names.size(), cases.size()) << "no case twice";
}

TEST(CaseGrid, QuickIsAPart) {
  const std::vector<DecodeCase> full = decode_cases({}), quick = decode_cases({.size = GridSize::quick});
  EXPECT_LT(4 * quick.size(), full.size());
  for (const DecodeCase& decode : quick) {
    if (decode.format == CacheFormat::sixteen_bit && decode.v_head_dim == 0 && !decode.ragged) {
      EXPECT_EQ(std::count(full.begin(), full.end(), decode), 1) << text_of(decode);
    }
  }
}

TEST(CaseGrid, AnAxisThatIsGivenReplacesIts) {
  const std::vector<DecodeCase> cases = decode_cases({.ranks = {80, 144},
                                                      .rope_dims = {16},
                                                      .formats = {CacheFormat::sixteen_bit, CacheFormat::int4},
                                                      .heads = {9},
                                                      .batches = {2},
                                                      .contexts = {100, 200}});
  ASSERT_EQ(cases.size(), 8u);
  for (const DecodeCase& decode : cases) {
    EXPECT_TRUE(decode.latent()) << "a rank leaves grouped-query attention out";
    EXPECT_EQ(decode.n_heads, 9);
  }
  EXPECT_EQ(text_of(cases.front()), "latent 80+16 H 9 B 2 S 100");
  EXPECT_EQ(text_of(cases.back()), "latent 144+16 H 9 int4 B 2 S 200");
  const std::vector<DecodeCase> grouped =
      decode_cases({.kv_heads = {2, 4}, .heads = {8}, .batches = {1}, .contexts = {64}});
  ASSERT_EQ(grouped.size(), 2u);
  EXPECT_EQ(text_of(grouped.back()), "grouped 4x128 H 8 B 1 S 64");
}

TEST(CaseGrid, KindsAndLengths) {
  for (const DecodeCase& decode : decode_cases({.kind = AttentionKind::grouped_query})) EXPECT_FALSE(decode.latent());
  for (const DecodeCase& decode : decode_cases({.kind = AttentionKind::latent})) EXPECT_TRUE(decode.latent());
  for (const DecodeCase& decode : decode_cases({.ragged = true})) EXPECT_TRUE(decode.ragged);
}

TEST(CaseGrid, RefusesContradictions) {
  struct Wrong {
    GridWish wish;
    const char* says;
  };
  const std::vector<Wrong> wrongs = {
      {{.ranks = {64}, .kv_heads = {2}}, "together they name no case"},
      {{.kind = AttentionKind::grouped_query, .ranks = {64}}, "not of --kind grouped"},
      {{.kind = AttentionKind::grouped_query, .formats = {CacheFormat::int4}}, "not of --kind grouped"},
      {{.kind = AttentionKind::latent, .head_dims = {64}}, "not of --kind latent"},
      {{.kv_heads = {5}, .heads = {32}}, "--kv-heads 5 does not divide --heads 32"},
      {{.ranks = {12}}, "--rank: expected multiples of 8 in 16 to 1024, found 12"},
      {{.rope_dims = {136}}, "--rope-dim: expected multiples of 8 in 8 to 128, found 136"},
      {{.head_dims = {24}}, "--head-dim"},
      {{.batches = {0}}, "--batch: expected 1 to 65536, found 0"},
      {{.contexts = {-1}}, "--context"}};
  for (const Wrong& wrong : wrongs) {
    try {
      decode_cases(wrong.wish);
      ADD_FAILURE() << wrong.says;
    } catch (const UsageError& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr(wrong.says));
    }
  }
}

}  // namespace
}  // namespace cinch
