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

TEST(GenerateCommand, ReportsItsDecodeStep) {
  const Outcome json = run_cinch(arguments({"-n", "8", "--json"}));
  ASSERT_EQ(json.code, 0) << json.err;
  EXPECT_EQ(json.json()["decode_kernel"], "attend");
  EXPECT_EQ(json.json()["decode_kernels"], Json::array({"layers 0 to 4: attend (no decode kernels on this device)"}));
  EXPECT_EQ(json.json()["cuda_graphs"], false);
  EXPECT_EQ(json.json()["kv_bits"], "16");
  EXPECT_EQ(json.json()["kv_emulated"], false);
  EXPECT_EQ(json.json()["kv_bytes"].get<int64_t>(),
            json.json()["kv_bytes_per_token"].get<int64_t>() * (json.json()["prompt_tokens"].get<int64_t>() + 7));
  EXPECT_THAT(run_cinch(arguments({"-n", "8"})).err, testing::HasSubstr("tokens/s by attend; f32 cache"));

  EXPECT_EQ(run_cinch(arguments({"-n", "8", "--kernel", "attend", "--no-graphs"})).out,
            run_cinch(arguments({"-n", "8"})).out);
  for (const char* kernel : {"mma", "sm90"}) {
    const Outcome forced = run_cinch(arguments({"--kernel", kernel}));
    EXPECT_EQ(forced.code, 4);
    EXPECT_THAT(forced.err, testing::HasSubstr("cannot run: no decode kernels on this device"));
  }
}

TEST(GenerateCommand, PacksLatentCaches) {
  const auto source = ModelSource::open(stories_model());
  TempFolder folder;
  const std::map<int64_t, LatentSizes> layers = {{1, {.rank = 24, .nope = 6, .rotary = 8, .value = 8}},
                                                 {3, {.rank = 16, .nope = 6, .rotary = 8, .value = 8}}};
  write_latent_model(with_latent_layers(*source, layers), *source, {.output = folder / "out", .format = "native"});
  const auto run = [&](std::vector<std::string> more) {
    std::vector<std::string> all = {"generate", (folder / "out").string(), "--prompt", "Once upon a time", "-n", "70"};
    all.insert(all.end(), more.begin(), more.end());
    return run_cinch(all);
  };
  const int64_t grouped = 3 * 2 * 4 * 8 * 2;  // bytes of a token in the other layers' 16-bit caches
  // 32 and 24 columns, rows of codes padded to 16 bytes. int8 and fp8: two scales per token; int4: scale and zero of
  // each channel per page.
  const int64_t bytes = grouped + 2 * (32 + 4), nibbles = grouped + 18 + 17 + 1;  // rounded up from 17.5
  for (const auto& [bits, expected] : std::map<std::string, int64_t>{{"8", bytes}, {"fp8", bytes}, {"4", nibbles}}) {
    SCOPED_TRACE(bits);
    const Outcome outcome = run({"--dtype", "bf16", "--kv-bits", bits, "--json"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.json()["kv_bits"], bits);
    EXPECT_EQ(outcome.json()["kv_emulated"], true);
    EXPECT_EQ(outcome.json()["kv_bytes_per_token"], expected);
    EXPECT_EQ(outcome.json()["ids"].size(), 70u);
    const double tokens = outcome.json()["prompt_tokens"].get<double>() + 69;
    const double open = bits == "4" ? 64 * (32 + 24) * 2 : 0;  // the pages that are not full
    EXPECT_NEAR(outcome.json()["kv_bytes"].get<double>(), tokens * static_cast<double>(expected) + open,
                tokens / 2 + 1);
  }
  EXPECT_THAT(run({"--dtype", "bf16", "--kv-bits", "4"}).err, testing::HasSubstr("int4 cache"));
  EXPECT_THAT(run({"--dtype", "bf16", "--kv-bits", "4"}).err, testing::HasSubstr("here it is emulated"));
  EXPECT_NE(run({"--kv-bits", "4"}).out, run({}).out);

  const Outcome refused = run_cinch(arguments({"--kv-bits", "8"}));
  EXPECT_EQ(refused.code, 4);
  EXPECT_THAT(refused.err, testing::HasSubstr("no layer of this model has it"));
  EXPECT_THAT(refused.err, testing::HasSubstr("cinch convert --to mla"));
  EXPECT_EQ(run({"--kv-bits", "5"}).code, 2);
}

}  // namespace
}  // namespace cinch
