#include "eval/eval_windows.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>

#include "core/errors.h"

namespace cinch {
namespace {

TEST(EvalWindows, GptqDropsTheRemainder) {
  const auto groups = eval_windows(parse_protocol("ppl-gptq-10"), 35);
  ASSERT_EQ(groups.size(), 1u);
  ASSERT_EQ(groups[0].windows.size(), 3u);
  EXPECT_EQ(groups[0].windows[2].begin, 20);
  EXPECT_EQ(groups[0].windows[2].scored_from, 1);
}

TEST(EvalWindows, LlamacppScoresTheSecondHalf) {
  const auto groups = eval_windows(parse_protocol("ppl-llamacpp-512"), 1024);
  ASSERT_EQ(groups[0].windows.size(), 2u);
  EXPECT_EQ(groups[0].length - groups[0].windows[0].scored_from, 512 - 256 - 1);
}

TEST(EvalWindows, StrideScoresEveryTokenButTheFirstOnce) {
  for (const int64_t n : {17, 40, 41, 55, 56, 57, 100}) {
    for (const int64_t stride : {1, 5, 16, 17}) {
      PerplexityProtocol protocol{.kind = PerplexityProtocol::Kind::stride, .window = 17, .stride = stride};
      std::vector<int> scored(static_cast<size_t>(n));
      for (const auto& group : eval_windows(protocol, n)) {
        for (const EvalWindow& window : group.windows) {
          ASSERT_LE(window.begin + group.length, n);
          for (int64_t p = window.scored_from; p < group.length; ++p) ++scored[static_cast<size_t>(window.begin + p)];
        }
      }
      EXPECT_EQ(scored[0], 0);
      const int expected_gaps =
          stride == 17 ? static_cast<int>((n - 1) / 17) : 0;  // disjoint windows: their first tokens have no context
      EXPECT_EQ(std::accumulate(scored.begin(), scored.end(), 0), n - 1 - expected_gaps) << n << " " << stride;
      for (const int count : scored) EXPECT_LE(count, 1);
    }
  }
}

TEST(EvalWindows, ShortTextIsRefused) { EXPECT_THROW(eval_windows(parse_protocol("ppl-gptq-10"), 9), UsageError); }

TEST(EvalWindows, IdsWithHead) {
  std::vector<int64_t> ids(30);
  std::iota(ids.begin(), ids.end(), 0);
  const auto groups = eval_windows(parse_protocol("ppl-gptq-10"), 30);
  const at::Tensor windows = window_ids(ids, groups[0], 1, 2, 99);
  EXPECT_EQ(windows.sizes(), (std::vector<int64_t>{2, 10}));
  EXPECT_EQ(windows[0][0].item<int64_t>(), 99);
  EXPECT_EQ(windows[0][1].item<int64_t>(), 11);
  EXPECT_EQ(windows[1][9].item<int64_t>(), 29);
}

}  // namespace
}  // namespace cinch
