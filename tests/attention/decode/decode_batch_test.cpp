#include "attention/decode/decode_batch.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <set>

#include "attention/kernels/decode/emulated_decode.h"
#include "core/errors.h"

namespace cinch {
namespace {

DecodeBatch batch_of(int64_t sequences, int64_t max_tokens, int64_t chunk, const DecodeFunctions* functions = nullptr) {
  return {{.sequences = sequences, .max_tokens = max_tokens, .prefill_chunk = chunk}, functions};
}

TEST(DecodeBatch, LengthsAreTheSameOnBothSides) {
  DecodeBatch batch = batch_of(3, 200, 64);
  batch.set_length(1, 70);
  batch.count_on_device();
  batch.count_on_host();
  EXPECT_EQ(batch.host_lengths(), (std::vector<int64_t>{1, 71, 1}));
  for (int64_t i = 0; i < 3; ++i)
    EXPECT_EQ(batch.lengths()[i].item<int32_t>(), batch.host_lengths()[static_cast<size_t>(i)]);
}

TEST(DecodeBatch, SequencesShareNoPage) {
  DecodeBatch batch = batch_of(3, 300, 64);
  for (const int64_t window : {0, 64}) {
    const at::Tensor table = batch.block_table(window);
    const int64_t held = batch.pages_per_sequence(window);
    ASSERT_EQ(table.size(1), 5);  // pages of 300 tokens
    std::set<int32_t> pages;
    for (int64_t b = 0; b < 3; ++b) {
      std::set<int32_t> own;
      for (int64_t p = 0; p < 5; ++p) own.insert(table[b][p].item<int32_t>());
      EXPECT_EQ(own.size(), static_cast<size_t>(held));
      pages.insert(own.begin(), own.end());
    }
    EXPECT_EQ(pages.size(), static_cast<size_t>(3 * held)) << "window " << window;
    EXPECT_EQ(*pages.rbegin(), 3 * held - 1);
  }
}

// Wherever a chunk lies, the pages of all tokens that its queries see are different ones.
TEST(DecodeBatch, AWindowsRingHoldsWhatAChunkSees) {
  for (const int64_t window : {1, 2, 63, 64, 65, 200}) {
    for (const int64_t chunk : {1, 24, 64, 100}) {
      DecodeBatch batch = batch_of(1, 1000, chunk);
      const int64_t held = batch.pages_per_sequence(window);
      for (int64_t first = 0; first + chunk <= 1000; ++first) {
        const int64_t oldest = std::max<int64_t>(0, first - (window - 1)), newest = first + chunk - 1;
        ASSERT_LE(newest / 64 - oldest / 64 + 1, held) << "window " << window << " chunk " << chunk << " at " << first;
      }
      EXPECT_LE(held, 16);  // pages of 1000 tokens
    }
  }
}

TEST(DecodeBatch, PlansAreSharedByPartsAndWindow) {
  DecodeBatch batch = batch_of(2, 100, 10, &emulated_decode_functions());
  CinchDecodeSizes sizes{};
  sizes.plan_bytes = 256;
  sizes.parts = 2;
  const int32_t* plan = batch.plan(sizes, 0);
  EXPECT_EQ(batch.plan(sizes, 0), plan);
  EXPECT_NE(batch.plan(sizes, 8), plan);
  sizes.parts = 3;
  EXPECT_NE(batch.plan(sizes, 0), plan);
}

TEST(DecodeBatch, TablesAreTheModelsAndShared) {
  DecodeBatch batch = batch_of(1, 50, 10);
  const std::vector<double> frequencies = {1.0, 0.1, 0.003};
  const RotaryTable expected = rotary_table(frequencies, 0, 50, at::kFloat, at::kCPU);
  const RotaryTable& plain = batch.rotary(frequencies, 1.0);
  EXPECT_TRUE(at::equal(plain.cos, expected.cos));
  EXPECT_TRUE(at::equal(plain.sin, expected.sin));
  EXPECT_EQ(&batch.rotary(frequencies, 1.0), &plain);
  EXPECT_TRUE(at::equal(batch.rotary(frequencies, 1.5).sin, expected.sin * 1.5));
  EXPECT_TRUE(at::equal(plain.sin, expected.sin));  // not scaled with it
}

TEST(DecodeBatch, ScratchOnlyGrowsAndIsZeroed) {
  DecodeBatch batch = batch_of(1, 50, 10);
  batch.reserve_scratch(1024);
  void* const memory = batch.scratch();
  EXPECT_EQ(*static_cast<const uint64_t*>(memory), 0u);
  batch.reserve_scratch(64);
  EXPECT_EQ(batch.scratch(), memory);
}

TEST(DecodeBatch, FailedCallsAreErrors) {
  const DecodeBatch batch = batch_of(1, 50, 10);
  EXPECT_NO_THROW(batch.check(0, "cinch_decode_run", ""));
  EXPECT_THROW(batch.check(-1, "cinch_decode_run", "too many heads"), ResourceError);
}

}  // namespace
}  // namespace cinch
