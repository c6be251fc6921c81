#include "model/generator.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/model/golden.h"

namespace cinch {
namespace {

class Generate : public testing::Test {
 protected:
  const GoldenModel golden_{GoldenCase{"llama_gqa"}};
  const DecoderModel model_{golden_.open(), at::kFloat};
  const std::vector<int64_t> prompt_ = {3, 14, 15, 92};
};

TEST_F(Generate, IsDeterministicForASeed) {
  const GenerateOptions options{.max_new_tokens = 30, .temperature = 1.5, .top_p = 0.9, .seed = 11, .stop_ids = {}};
  GenerateOptions other = options;
  other.seed = 12;
  EXPECT_EQ(generate(model_, prompt_, options, {}).ids, generate(model_, prompt_, options, {}).ids);
  EXPECT_NE(generate(model_, prompt_, options, {}).ids, generate(model_, prompt_, other, {}).ids);
}

TEST_F(Generate, SmallTopPIsGreedy) {
  const auto greedy = generate(model_, prompt_, {.max_new_tokens = 20}, {}).ids;
  EXPECT_EQ(generate(model_, prompt_,
                     {.max_new_tokens = 20, .temperature = 2.0, .top_p = 1e-9, .seed = 5, .stop_ids = {}}, {})
                .ids,
            greedy);
}

TEST_F(Generate, HighTemperatureDrawsManyTokens) {
  const auto ids = generate(model_, prompt_,
                            {.max_new_tokens = 200, .temperature = 1e6, .top_p = 1.0, .seed = 3, .stop_ids = {}}, {})
                       .ids;
  EXPECT_GT(std::set<int64_t>(ids.begin(), ids.end()).size(), 60u);  // of 96
}

TEST_F(Generate, StopsAtStopIdsAndCallbacks) {
  const auto greedy = generate(model_, prompt_, {.max_new_tokens = 20}, {}).ids;
  const auto stopped = generate(model_, prompt_, {.max_new_tokens = 20, .stop_ids = {greedy[5]}}, {}).ids;
  const size_t first = static_cast<size_t>(std::find(greedy.begin(), greedy.end(), greedy[5]) - greedy.begin());
  EXPECT_EQ(stopped, std::vector<int64_t>(greedy.begin(), greedy.begin() + static_cast<std::ptrdiff_t>(first)));
  std::vector<int64_t> seen;
  generate(model_, prompt_, {.max_new_tokens = 20}, [&](int64_t id) {
    seen.push_back(id);
    return seen.size() < 3;
  });
  EXPECT_EQ(seen, std::vector<int64_t>(greedy.begin(), greedy.begin() + 3));
}

}  // namespace
}  // namespace cinch
