#include <fmt/format.h>
#include <gmock/gmock.h>

#include <csignal>

#include "core/files.h"
#include "core/progress.h"
#include "eval/bench/random_model.h"
#include "src/bench_models.h"
#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

using testing::HasSubstr;

std::vector<std::string> kernels(const std::vector<std::string>& more) {
  std::vector<std::string> all = {"bench", "kernels", "--kind", "latent", "--rank", "64", "--rope-dim", "32"};
  for (const char* word : {"--heads", "4", "--batch", "1", "--context", "64"}) all.emplace_back(word);
  all.insert(all.end(), more.begin(), more.end());
  return all;
}
std::vector<std::string> decode(const std::vector<std::string>& more) {
  std::vector<std::string> all = {"bench", "decode", "--batch", "1,2", "--context", "64", "--steps", "2"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

TEST(BenchCommand, KernelsAsJson) {
  const TempFolder folder;
  const std::string copy = (folder / "report.json").string();
  const Outcome outcome = run_cinch(kernels({"--json", "-q", "--commit", "abc123", "--output", copy}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  const Json json = outcome.json();
  EXPECT_EQ(json["program"], "cinch bench kernels");
  EXPECT_EQ(json["commit"], "abc123");
  EXPECT_EQ(json["interrupted"], false);
  EXPECT_GT(json["copy_gb_per_s"].get<double>(), 0.1);
  for (const char* key : {"device", "driver", "seconds"}) EXPECT_TRUE(json.contains(key)) << key;
  ASSERT_EQ(json["rows"].size(), 4u);
  for (const Json& row : json["rows"]) {
    EXPECT_EQ(row["status"], "ok");
    EXPECT_EQ(row["cache_bytes"], 64 * 96 * 4);
    EXPECT_NEAR(row["share_of_copy"].get<double>(), row["gb_per_s"].get<double>() / json["copy_gb_per_s"].get<double>(),
                1e-9);
  }
  EXPECT_EQ(parse_json(read_text(copy), copy), json);
}

TEST(BenchCommand, KernelsAsATable) {
  const Outcome outcome = run_cinch(kernels({"--kernel", "two-gemm,attend"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* part : {"copy", "GB/s (read + written)", "of copy", "error", "latent 64+32 H 4 B 1 S 64", "two-gemm",
                           "attend: sdpa", "24.0 KiB"})
    EXPECT_THAT(outcome.out, HasSubstr(part));
  EXPECT_THAT(outcome.out, testing::Not(HasSubstr("sdpa-math")));
}

TEST(BenchCommand, WhatAPeerDoesNotComputeRightStandsBelowTheTable) {
  // Products of bf16 on a CPU are rounded to bf16, scores too: beyond what a kernel may be wrong.
  const Outcome outcome = run_cinch(kernels({"--kernel", "two-gemm,sdpa-flash", "--dtype", "bf16", "--json", "-q"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json report = outcome.json();
  for (const Json& row : report["rows"]) {
    EXPECT_EQ(row["status"] == "ok", row["error"].get<double>() <= 5e-3);
    EXPECT_EQ(row.contains("us"), row["status"] == "ok");
  }
}

TEST(BenchCommand, AModelBeforeAndAfter) {
  const Outcome outcome = run_cinch(
      decode({stories_model(), "--random-weights", "--to", "gqa:2,mla", "--rank", "24", "--rope-dim", "8", "--json"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json json = outcome.json();
  EXPECT_EQ(json["program"], "cinch bench decode");
  ASSERT_EQ(json["rows"].size(), 6u);
  const std::vector<std::string> names = {stories_model(), stories_model() + " gqa:2", stories_model() + " mla 24+8"};
  const std::vector<double> bytes = {5 * 64 * 4.0, 5 * 32 * 4.0, 5 * 32 * 4.0};
  for (size_t i = 0; i < 6; ++i) {
    const Json& row = json["rows"][i];
    EXPECT_EQ(row["model"], names[i / 2]);
    EXPECT_EQ(row["status"], "ok") << row;
    EXPECT_EQ(row["random_weights"], true);
    EXPECT_EQ(row["kv_bytes_per_token"], bytes[i / 2]);
    EXPECT_EQ(row["cache_bytes"], bytes[i / 2] * 64 * row["batch"].get<int>());
    EXPECT_NEAR(row["tokens_per_second"].get<double>(), row["batch"].get<double>() / (row["us"].get<double>() * 1e-6),
                1e-6);
    for (const char* key : {"context", "weight_bytes", "read_weight_bytes", "kernel", "graph", "steps", "fastest_us",
                            "slowest_us", "gb_per_s", "share_of_copy", "kv_format"})
      EXPECT_TRUE(row.contains(key)) << key;
  }
}

TEST(BenchCommand, ModelsWithWeightsSideBySide) {
  const Outcome outcome = run_cinch(decode({stories_model(), tiny_model()}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  for (const char* part : {"batch x context", "ms/step", "tokens/s", "speed-up", "of copy", "attend"})
    EXPECT_THAT(outcome.out, HasSubstr(part));
  const size_t first = outcome.out.find("1 x 64"), second = outcome.out.find("2 x 64");
  const std::string of_first = outcome.out.substr(first, second - first);
  EXPECT_THAT(of_first, HasSubstr(stories_model()));
  EXPECT_THAT(of_first, HasSubstr(tiny_model())) << "cases stand together";
}

TEST(BenchCommand, ConfigsAlone) {
  const TempFolder folder;
  const std::string config = (folder / "config.json").string();
  write_text(config, read_text(repo_file("examples/stories260K/config.json")));
  for (const std::vector<std::string>& model :
       {std::vector<std::string>{config, "--random-weights"}, {folder.path().string(), "--random-weights"}}) {
    const Outcome outcome = run_cinch(decode({model[0], model[1], "--json", "-q"}));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.json()["rows"][0]["weight_bytes"], 1040128);
  }
}

TEST(BenchCommand, BuiltInShapesAreTheModelsTheyAreNamedAfter) {
  const std::vector<std::string> names = shape_names();
  const std::vector<int64_t> parameters = {8030261248, 6738415616, 134515008};  // as Hugging Face counts them
  ASSERT_EQ(names.size(), parameters.size());
  for (size_t i = 0; i < names.size(); ++i) {
    const std::vector<BenchModel> models =
        bench_models_of({.shapes = {names[i]}, .targets = {"mqa", "mla"}, .rank = 96, .rope_dim = 32});
    ASSERT_EQ(models.size(), 3u);
    const ModelSource& source = *models[0].source;
    EXPECT_EQ(weight_bytes(source.config(), source.family(), 1).all, parameters[i]) << names[i];
    EXPECT_EQ(models[1].name, names[i] + " mqa");
    EXPECT_EQ(models[2].name, names[i] + " mla 96+32");
    for (const BenchModel& model : models) EXPECT_TRUE(model.random_weights);
    for (const AttentionSpec& layer : models[1].source->config().layers) EXPECT_EQ(layer.n_kv_heads, 1);
    for (const AttentionSpec& layer : models[2].source->config().layers) {
      EXPECT_EQ(layer.kv_elements(), 128);
      EXPECT_EQ(layer.rope_inv_freq.front(), 1);
      EXPECT_LT(layer.rope_inv_freq.back(), 1e-2);
    }
  }
}

TEST(BenchCommand, WhatDoesNotFitIsSaidAndTheRestMeasured) {
  const Outcome some = run_cinch({"bench", "decode", stories_model(), "--batch", "64", "--context", "64,16000000",
                                  "--steps", "2", "--json", "-q"});
  ASSERT_EQ(some.code, 0) << some.err;
  ASSERT_EQ(some.json()["rows"].size(), 2u);
  EXPECT_EQ(some.json()["rows"][0]["status"], "ok");
  EXPECT_EQ(some.json()["rows"][1]["status"], "does not fit");
  EXPECT_THAT(some.json()["rows"][1]["reason"].get<std::string>(), HasSubstr("caches and logits take"));
  const Outcome none = run_cinch(
      {"bench", "kernels", "--rank", "512", "--batch", "65536", "--context", "16000000", "--kernel", "attend"});
  EXPECT_EQ(none.code, 6);
  EXPECT_THAT(none.out, HasSubstr("does not fit"));
  EXPECT_THAT(none.err, HasSubstr("error: no case fits into the memory that is free"));
  EXPECT_THAT(none.err, HasSubstr("help: give smaller --batch and --context"));
}

TEST(BenchCommand, RefusesWhatIsNoBenchmark) {
  struct Case {
    std::vector<std::string> arguments;
    const char *error, *help;
  };
  const std::string model = stories_model();
  const std::vector<Case> cases = {
      {{"bench"}, "WHAT", "cinch bench --help"},
      {{"bench", "kernals"}, "unknown value \"kernals\"; known: kernels, decode", "did you mean \"kernels\"?"},
      {{"bench", "kernels", model}, "`cinch bench kernels` takes no model", "cinch bench decode MODEL"},
      {{"bench", "kernels", "--shape", "llama-3-8b"}, "--shape is of `cinch bench decode`", "--help"},
      {{"bench", "decode", model, "--quick"}, "--quick is of `cinch bench kernels`", "--help"},
      {{"bench", "kernels", "--kind", "dense"}, "--kind: unknown value \"dense\"", ""},
      {{"bench", "kernels", "--kernel", "fast"}, "--kernel: unknown kernel \"fast\"; known: cinch, mma", ""},
      {{"bench", "kernels", "--rank", "63"}, "--rank: expected multiples of 8", ""},
      {{"bench", "kernels", "--rank", "many"}, "--rank: expected a whole number, found \"many\"", ""},
      {{"bench", "kernels", "--kv-bits", "5"}, "unknown cache format \"5\"", "known: 16, 8, fp8, 4"},
      {{"bench", "kernels", "--kv-heads", "2", "--kv-bits", "8"}, "together they name no case", ""},
      {{"bench", "decode"}, "needs a MODEL or --shape", "--shape llama-3-8b"},
      {{"bench", "decode", "/nowhere"}, "MODEL: no such file or folder: /nowhere", ""},
      {{"bench", "decode", "--shape", "llama-3-8"}, "--shape: unknown shape \"llama-3-8\"", "did you mean llama-3-8b?"},
      {{"bench", "decode", model, "--to", "mqa"}, "--to makes models of random weights", "--random-weights"},
      {{"bench", "decode", model, "--rank", "8"}, "--rank and --rope-dim are of --to mla", ""},
      {{"bench", "decode", model, "--random-weights", "--to", "mla"}, "--to mla needs --rank and --rope-dim", ""},
      {{"bench", "decode", model, "--random-weights", "--to", "gqa:3"}, "cannot merge 4 KV heads into 3", "1, 2, 4"},
      {{"bench", "decode", model, "--kernel", "fast"}, "unknown decode kernel \"fast\"", "auto, attend, mma, sm90"},
      {{"bench", "decode", model, "--kernel", "mma,sm90"}, "`cinch bench decode` takes one", ""},
      {{"bench", "decode", model, "--steps", "0"}, "--steps: expected 1 to 10000, found 0", ""},
      {{"bench", "decode", model, "--batch", "0"}, "--batch: expected 1 to 65536, found 0", ""},
      {{"bench", "decode", model, "--context", "3"}, "--context: expected 4 or more, found 3", ""},
      {{"bench", "decode", model, "--dtype", "int8"}, "--dtype: unknown value \"int8\"", ""},
      {{"bench", "decode", model, "--device", "gpu"}, "--device: unknown device \"gpu\"", ""}};
  for (const Case& c : cases) {
    const Outcome outcome = run_cinch(c.arguments);
    EXPECT_EQ(outcome.code, 2) << c.error << "\n" << outcome.err;
    EXPECT_THAT(outcome.err, testing::AllOf(HasSubstr(c.error), HasSubstr(c.help), HasSubstr("\nhelp: ")));
    EXPECT_EQ(outcome.out, "");
  }
}

TEST(BenchCommand, ABadPlaceForTheReportShowsBeforeTheWork) {
  const TempFolder folder;
  const Outcome outcome = run_cinch(kernels({"--output", (folder / "absent/report.json").string()}));
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.err, HasSubstr("error: cannot write"));
  EXPECT_EQ(outcome.out, "");
}

/// The command with Ctrl-C before its first case is done, in a process of its own; ends it.
[[noreturn]] void run_interrupted(const std::vector<std::string>& arguments) {
  install_interrupt_handlers();
  std::raise(SIGINT);
  const Outcome outcome = run_cinch(arguments);
  const size_t rows = outcome.json()["rows"].size();
  const bool said = outcome.json()["interrupted"].get<bool>();
  std::fputs(fmt::format("{} rows, interrupted: {}\n{}", rows, said, outcome.err).c_str(), stderr);
  std::exit(outcome.code);
}

TEST(BenchCommandDeathTest, CtrlCEndsAfterTheCaseAndKeepsWhatWasMeasured) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  const auto says = [](const char* text) { return testing::ContainsRegex(text); };
  EXPECT_EXIT(run_interrupted(kernels({"--context", "64,128,256", "--kernel", "attend", "--json"})),
              testing::ExitedWithCode(130), says("1 rows, interrupted: true(.|\n)*error: interrupted\nhelp: "));
  EXPECT_EXIT(run_interrupted(decode({stories_model(), "--json"})), testing::ExitedWithCode(130),
              says("1 rows, interrupted: true(.|\n)*error: interrupted\nhelp: "));
}

TEST(BenchCommand, CasesThatNothingTakesAreSaid) {
  const Outcome outcome = run_cinch({"bench", "kernels", "--kind", "latent", "--rank", "40", "--rope-dim", "8",
                                     "--batch", "1", "--context", "64", "--kv-bits", "4"});
  EXPECT_EQ(outcome.code, 6);
  EXPECT_THAT(outcome.err, testing::HasSubstr("no kernel that this machine can run takes any of these cases"));
}

}  // namespace
}  // namespace cinch
