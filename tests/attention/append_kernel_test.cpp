// The cache append's own code, in the warp emulator: byte for byte what obvious loops write, and no byte more.
#include <gtest/gtest.h>

#include <array>
#include <stdexcept>
#include <string>

#include "attention/kernels/decode/append_job.h"
#include "attention/kernels/decode/emulated_decode.h"
#include "attention/kernels/decode/page_pack.h"
#include "tests/attention/append_grid.h"
#include "tests/attention/emulation.h"

namespace cinch::decode {
namespace {

class AppendKernel : public EmulationTest {};

AppendArrays run(const AppendCase& c, bool last_warp_first = false) {
  AppendArrays arrays = AppendBuilder(c, 11).build();
  arrays.point();
  run_emulated(arrays.append, last_warp_first);
  return arrays;
}

/// Where two arrays differ first, or -1.
int64_t first_difference(const std::vector<uint16_t>& a, const std::vector<uint16_t>& b) {
  if (a.size() != b.size()) return 0;
  const auto place = std::mismatch(a.begin(), a.end(), b.begin()).first;
  return place == a.end() ? -1 : place - a.begin();
}

void expect_same(const AppendResult& found, const AppendResult& expected) {
  EXPECT_EQ(first_difference(found.q_out, expected.q_out), -1) << "q_out";
  EXPECT_EQ(first_difference(found.keys, expected.keys), -1) << "keys";
  EXPECT_EQ(first_difference(found.values, expected.values), -1) << "values";
  EXPECT_EQ(first_difference(found.open, expected.open), -1) << "open pages";
}

void expect_good(const std::vector<AppendCase>& cases) {
  bool last_warp_first = false;
  for (const AppendCase& c : cases) {
    SCOPED_TRACE(name_of(c));
    try {
      const AppendResult expected = expected_append(AppendBuilder(c, 11).build());
      expect_same(run(c, last_warp_first).to, expected);
    } catch (const std::runtime_error& fault) {
      ADD_FAILURE() << fault.what();
    }
    last_warp_first = !last_warp_first;
  }
}

TEST_F(AppendKernel, GroupedCaches) { expect_good(grouped_appends()); }
TEST_F(AppendKernel, LatentCachesOf16Bits) { expect_good(latent_appends(CINCH_CACHE_16BIT)); }
TEST_F(AppendKernel, Int8Pages) { expect_good(latent_appends(CINCH_CACHE_INT8)); }
TEST_F(AppendKernel, Fp8Pages) { expect_good(latent_appends(CINCH_CACHE_FP8)); }
TEST_F(AppendKernel, Int4Pages) { expect_good(latent_appends(CINCH_CACHE_INT4)); }

TEST_F(AppendKernel, OrderOfThreadsAndBlocksChangesNoBit) {
  std::vector<AppendCase> cases = tiny_appends();
  for (const int tokens : {10, 200}) {
    cases.push_back(latent_append(136, 64, tokens, {70, 260, 128}));
    cases.back().format = CINCH_CACHE_INT4;
    cases.back().key_scales = true;
  }
  for (const AppendCase& c : cases) {
    SCOPED_TRACE(name_of(c));
    const AppendResult first = run(c, false).to;
    expect_same(run(c, true).to, first);
    expect_same(run(c, false).to, first);
  }
}

/// A latent of 150 tokens that come one by one, or all at once.
TEST_F(AppendKernel, TokensOneByOneEqualAllAtOnce) {
  for (int format = CINCH_CACHE_16BIT; format <= CINCH_CACHE_INT4; ++format) {
    AppendCase c = latent_append(40, 16, 150, {150});
    c.format = format;
    c.key_scales = true;
    SCOPED_TRACE(name_of(c));
    const AppendArrays whole = run(c);
    AppendArrays steps = AppendBuilder(c, 11).build();
    steps.point();
    const CinchCacheAppend all = steps.append;
    for (int t = 0; t < 150; ++t) {
      CinchCacheAppend& one = steps.append;
      const auto from = [t](CinchTokenRows rows) {
        rows.data = static_cast<const uint16_t*>(rows.data) + t * rows.token_stride;
        return rows;
      };
      one.tokens = 1;
      one.q = from(all.q);
      one.q_out = static_cast<uint16_t*>(all.q_out) + t * all.q_out_token_stride;
      one.k = from(all.k);
      one.v = from(all.v);
      one.scales = from(all.scales);
      steps.lengths[0] = t + 1;
      run_emulated(one, t % 2 == 1);
    }
    EXPECT_EQ(first_difference(steps.to.q_out, whole.to.q_out), -1);
    EXPECT_EQ(first_difference(steps.to.keys, whole.to.keys), -1);
    // Of the open page the tokens that are in it: rows beyond them are of earlier pages.
    for (int64_t i = 0; format == CINCH_CACHE_INT4 && i < 150 % 64 * all.open.token_stride; ++i)
      ASSERT_EQ(steps.to.open[static_cast<size_t>(i)], whole.to.open[static_cast<size_t>(i)]) << i;
  }
}

/// Pages hold what the CPU packs from the rows of a 16-bit cache.
TEST_F(AppendKernel, PagesAreThoseThatTheCpuPacks) {
  for (const int format : {CINCH_CACHE_INT8, CINCH_CACHE_FP8, CINCH_CACHE_INT4}) {
    AppendCase c = latent_append(72, 16, 128, {128});
    c.key_scales = true;
    const AppendArrays rows = run(c);
    c.format = format;
    SCOPED_TRACE(name_of(c));
    const AppendArrays pages = run(c);
    const PageShape shape{format, c.type, c.rank, c.rope, c.n_kv_heads};
    const CinchDecodeCache& held = rows.append.keys;
    for (int page = 0; page < 2; ++page) {
      std::vector<float> numbers;
      for (int token = 0; token < 64; ++token) {
        const auto at = rows.table[static_cast<size_t>(page)] * held.page_stride + token * held.token_stride;
        for (int i = 0; i < shape.row_width(); ++i)
          numbers.push_back(Bf16::to_float(rows.to.keys[static_cast<size_t>(at + i)]));
      }
      std::vector<uint8_t> packed(static_cast<size_t>(shape.layout().page_bytes));
      pack_page(shape, numbers.data(), 64, packed.data());
      const auto* const found = static_cast<const uint8_t*>(pages.append.keys.data) +
                                pages.table[static_cast<size_t>(page)] * pages.append.keys.page_stride;
      const int codes = format == CINCH_CACHE_INT4 ? shape.columns() / 2 : shape.columns();
      int differing = 0;
      for (int i = 0; i < shape.layout().page_bytes; ++i) {
        const bool padding = i < shape.layout().scales && i % shape.layout().row_bytes >= codes;
        if (!padding && found[i] != packed[static_cast<size_t>(i)]) ++differing;
      }
      EXPECT_EQ(differing, 0);
    }
  }
}

std::string refusal(const CinchCacheAppend& append) {
  AppendJob job{};
  std::array<char, 256> error{};
  return make_append_job(append, job, error.data(), error.size()) ? "" : error.data();
}

TEST(AppendJob, RefusalsNameRuleAndValue) {
  const AppendCase latent = latent_append(40, 16, 1, {70}), grouped = grouped_append(48, 20, 9, 3, 1, {70});
  AppendCase int4 = latent;
  int4.format = CINCH_CACHE_INT4;
  struct Fault {
    AppendCase of;
    void (*spoil)(CinchCacheAppend&);
    const char* expected;
  };
  const std::vector<Fault> faults = {
      {latent, [](CinchCacheAppend& a) { a.kind = 2; }, "kind must be grouped or latent, found 2"},
      {latent, [](CinchCacheAppend& a) { a.type = 2; }, "type must be bf16 or fp16, found 2"},
      {latent, [](CinchCacheAppend& a) { a.cache_format = 4; },
       "cache_format must be 16 bits, int8, fp8 or int4, found 4"},
      {latent, [](CinchCacheAppend& a) { a.pairs = 3; }, "pairs must be halves or neighbours, found 3"},
      {latent, [](CinchCacheAppend& a) { a.batch = 0; }, "batch must be in 1..65536, found 0"},
      {latent, [](CinchCacheAppend& a) { a.tokens = 0; }, "tokens must be in 1..2^24, found 0"},
      {grouped, [](CinchCacheAppend& a) { a.n_heads = 0; }, "n_heads must be in 1..1024, found 0"},
      {grouped, [](CinchCacheAppend& a) { a.n_kv_heads = -1; }, "n_kv_heads must be in 1..1024, found -1"},
      {grouped, [](CinchCacheAppend& a) { a.head_dim = 0; }, "head_dim must be in 1..1024, found 0"},
      {latent, [](CinchCacheAppend& a) { a.kv_lora_rank = 0; }, "kv_lora_rank must be in 1..4096, found 0"},
      {latent, [](CinchCacheAppend& a) { a.qk_rope_head_dim = -2; }, "qk_rope_head_dim must be in 0..1024, found -2"},
      {grouped, [](CinchCacheAppend& a) { a.key_scales = 1; },
       "key scales and rotary keys of KV heads need latent attention, found 0"},
      {grouped, [](CinchCacheAppend& a) { a.rotary_dim = 50; },
       "rotary_dim must be even and at most a head's width, found 50"},
      {grouped, [](CinchCacheAppend& a) { a.rotary_dim = 7; },
       "rotary_dim must be even and at most a head's width, found 7"},
      {latent, [](CinchCacheAppend& a) { a.rotary_dim = 8; },
       "rotary_dim of latent attention must be qk_rope_head_dim, found 8"},
      {latent, [](CinchCacheAppend& a) { a.sin = nullptr; }, "rotation needs cos and sin, found 0"},
      {latent, [](CinchCacheAppend& a) { a.q_out = nullptr; }, "q and q_out go together, found 0"},
      {latent, [](CinchCacheAppend& a) { a.k.data = nullptr; }, "k must be there, found 0"},
      {grouped, [](CinchCacheAppend& a) { a.v.data = nullptr; }, "v must be there, found 0"},
      {latent, [](CinchCacheAppend& a) { a.key_scales = 1; }, "key_scales needs scales, found 0"},
      {latent, [](CinchCacheAppend& a) { a.lengths = nullptr; }, "lengths must be there, found 0"},
      {latent, [](CinchCacheAppend& a) { a.keys.token_stride = 48; },
       "keys must be there, with a token_stride that holds a row, found 48"},
      {grouped, [](CinchCacheAppend& a) { a.values.data = nullptr; },
       "values must be there, with a token_stride that holds a row, found 48"},
      {grouped, [](CinchCacheAppend& a) { a.cache_format = CINCH_CACHE_INT8; },
       "a cache below 16 bits needs latent attention, found 0"},
      {int4, [](CinchCacheAppend& a) { a.block_table = nullptr; }, "a cache below 16 bits needs pages, found 0"},
      {int4, [](CinchCacheAppend& a) { a.pairs = CINCH_PAIRS_HALVES; },
       "a cache below 16 bits needs pairs of neighbours, found 0"},
      {int4, [](CinchCacheAppend& a) { a.kv_lora_rank = 36; },
       "kv_lora_rank of a cache below 16 bits must be a multiple of 8, at most 1024, found 36"},
      {int4, [](CinchCacheAppend& a) { a.kv_lora_rank = 1032; },
       "kv_lora_rank of a cache below 16 bits must be a multiple of 8, at most 1024, found 1032"},
      {int4, [](CinchCacheAppend& a) { a.rotary_dim = a.qk_rope_head_dim = 4; },
       "qk_rope_head_dim of a cache below 16 bits must be a multiple of 8, all rotary columns at most 1024, found 4"},
      {int4, [](CinchCacheAppend& a) { a.keys.page_stride = 2000; },
       "keys must be there, with a page_stride in bytes that holds a page, a multiple of 16, found 2000"},
      {int4, [](CinchCacheAppend& a) { a.keys.page_stride += 8; },
       "keys must be there, with a page_stride in bytes that holds a page, a multiple of 16, found 2312"},
      {int4, [](CinchCacheAppend& a) { a.keys.data = static_cast<const char*>(a.keys.data) + 8; },
       "pages must begin at a multiple of 16 bytes, found 0"},
      {int4, [](CinchCacheAppend& a) { a.open.token_stride = 48; },
       "an int4 cache needs open pages, with a token_stride that holds a row, found 48"},
      {grouped,
       [](CinchCacheAppend& a) {
         a.batch = 65536;
         a.tokens = 1 << 24;
       },
       "an append must need at most 2^31 - 1 thread blocks, found 1099511627776"},
  };
  for (const Fault& fault : faults) {
    AppendArrays arrays = AppendBuilder(fault.of, 11).build();
    arrays.point();
    EXPECT_EQ(refusal(arrays.append), "");
    fault.spoil(arrays.append);
    EXPECT_EQ(refusal(arrays.append), fault.expected);
  }
}

}  // namespace
}  // namespace cinch::decode
