#include <gmock/gmock.h>

#include "tests/model/latent_model.h"
#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

std::vector<std::string> arguments(const std::vector<std::string>& more) {
  std::vector<std::string> all = {"generate", stories_model(), "--prompt", "Once upon a time"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

TEST(GenerateCommand, StreamsTheTextOfItsIds) {
  const Outcome text = run_cinch(arguments({"-n", "24"}));
  const Outcome json = run_cinch(arguments({"-n", "24", "--json"}));
  ASSERT_EQ(text.code, 0) << text.err;
  ASSERT_EQ(json.code, 0) << json.err;
  EXPECT_EQ(json.json()["ids"].size(), 24u);
  EXPECT_EQ(json.json()["text"].get<std::string>() + "\n", text.out);
  EXPECT_THAT(text.out, testing::StartsWith(", there was a little"));
  EXPECT_THAT(text.err, testing::HasSubstr("tokens/s"));
  EXPECT_EQ(json.json()["kv_bytes_per_token"], 5 * 2 * 4 * 8 * 4);  // fp32 cache
}

TEST(GenerateCommand, SeedsDecideTheSample) {
  const auto sample = [](const std::string& seed) {
    return run_cinch(arguments({"-n", "20", "--temperature", "1", "--seed", seed})).out;
  };
  EXPECT_EQ(sample("1"), sample("1"));
  EXPECT_NE(sample("1"), sample("2"));
}

TEST(GenerateCommand, RunsLatentLayers) {
  const auto source = ModelSource::open(stories_model());
  TempFolder folder;
  write_latent_model(with_latent_layers(*source, {{3, {.rank = 16, .nope = 6, .rotary = 4, .value = 8}}}), *source,
                     {.output = folder / "out", .format = "native"});
  const Outcome outcome =
      run_cinch({"generate", (folder / "out").string(), "--prompt", "Once upon a time", "-n", "12", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.json()["ids"].size(), 12u);
  EXPECT_EQ(outcome.json()["kv_bytes_per_token"], (4 * 2 * 4 * 8 + 20) * 4);  // fp32 cache
}

TEST(GenerateCommand, NeedsATokenizer) {
  const Outcome outcome = run_cinch({"generate", tiny_model(), "--prompt", "a"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, testing::HasSubstr("has no tokenizer"));
}

TEST(GenerateCommand, TakesTheKernelThatIsForced) {
  const Outcome reference = run_cinch(arguments({"-n", "8", "--kernel", "reference"}));
  ASSERT_EQ(reference.code, 0) << reference.err;
  EXPECT_EQ(reference.out, run_cinch(arguments({"-n", "8"})).out);
  const Outcome flash = run_cinch(arguments({"-n", "8", "--kernel", "flash"}));
  EXPECT_NE(flash.code, 0);
  EXPECT_THAT(flash.err, testing::HasSubstr("--kernel flash does not cover this attention: it misses CPU"));
  EXPECT_EQ(run_cinch(arguments({"--kernel", "flush"})).code, 2);
  EXPECT_EQ(run_cinch(arguments({"-n", "8"})).code, 0);  // the next command is free again
}

}  // namespace
}  // namespace cinch
