#include <gmock/gmock.h>

#include "checkpoints/formats/gguf.h"
#include "core/files.h"
#include "tests/model/latent_model.h"
#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

double perplexity(const std::string& model) {
  const Outcome outcome = run_cinch({"eval", model, "--text", repo_file("examples/stories/test.txt").string(),
                                     "--max-tokens", "600", "--window", "100", "--json", "-q"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  return outcome.code == 0 ? outcome.json()["perplexity"]["value"].get<double>() : 0;
}

class ExportFormat : public testing::TestWithParam<std::string> {};

TEST_P(ExportFormat, KeepsTheFunctionAndRefusesToReplace) {
  const TempFolder folder;
  const std::string format = GetParam();
  const std::string out = (folder / (format == "gguf"          ? "out.gguf"
                                     : format == "safetensors" ? "out.safetensors"
                                                               : "out"))
                              .string();
  const Outcome outcome = run_cinch({"export", stories_model(), out, "--format", format, "--json", "-q"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.json()["output"], out);
  EXPECT_EQ(run_cinch({"verify", out}).code, 0);
  if (format != "safetensors") {
    EXPECT_NEAR(perplexity(out), perplexity(stories_model()), 1e-4);
  }
  const Outcome again = run_cinch({"export", stories_model(), out, "--format", format});
  EXPECT_NE(again.code, 0);
  EXPECT_THAT(again.err, testing::HasSubstr("--force"));
  EXPECT_EQ(run_cinch({"export", stories_model(), out, "--format", format, "--force", "-q"}).code, 0);
}
INSTANTIATE_TEST_SUITE_P(Formats, ExportFormat, testing::Values("hf", "gguf", "native", "hdf5", "safetensors"),
                         [](const auto& test) { return test.param; });

TEST(ExportCommand, MixedLayersGoIntoNativeFoldersOnly) {
  const auto source = ModelSource::open(stories_model());
  const TempFolder folder;
  const std::string in = (folder / "in").string(), out = (folder / "out").string();
  write_latent_model(with_latent_layers(*source, {{0, {.rank = 16, .nope = 6, .rotary = 4, .value = 8}}}), *source,
                     {.output = in, .format = "native"});
  for (const char* format : {"hf", "gguf", "safetensors"}) {
    const Outcome outcome = run_cinch({"export", in, out, "--format", format});
    EXPECT_EQ(outcome.code, 4) << format;
    EXPECT_THAT(outcome.err, testing::AllOf(testing::HasSubstr("latent"), testing::HasSubstr("--format native")));
    EXPECT_FALSE(std::filesystem::exists(out)) << format;
  }
  ASSERT_EQ(run_cinch({"export", in, out, "--format", "hdf5", "-q"}).code, 0);
  EXPECT_EQ(run_cinch({"verify", out}).code, 0);
  EXPECT_NEAR(perplexity(out), perplexity(in), 1e-9 * perplexity(in));
}

TEST(ExportCommand, HalfPrecisionHalvesTheFile) {
  const TempFolder folder;
  ASSERT_EQ(run_cinch({"export", stories_model(), (folder / "full").string(), "--format", "hf", "-q"}).code, 0);
  ASSERT_EQ(
      run_cinch({"export", stories_model(), (folder / "half").string(), "--format", "hf", "--dtype", "bf16", "-q"})
          .code,
      0);
  const auto size = [&](const char* name) {
    return static_cast<double>(std::filesystem::file_size(folder / name / "model.safetensors"));
  };
  EXPECT_NEAR(size("half") / size("full"), 0.5, 0.02);
  EXPECT_EQ(run_cinch({"inspect", (folder / "half").string(), "--json"}).json()["dtype"], "bfloat16");
}

/// stories260K as a latent that every runtime's rules allow but vLLM's width.
std::string latent_stories(const TempFolder& folder) {
  const std::string out = (folder / "latent").string();
  EXPECT_EQ(run_cinch({"convert", stories_model(), out, "--to", "mla", "--rank", "16", "--rope-dim", "8", "--for",
                       "llama.cpp", "--calibration", repo_file("examples/stories/calibration.txt").string(),
                       "--calibration-tokens", "4096", "--calibration-window", "128", "-q"})
                .code,
            0);
  return out;
}

TEST(ExportCommand, LatentModelsForEveryRuntime) {
  const TempFolder folder;
  const std::string in = latent_stories(folder);
  for (const char* runtime : {"hf", "sglang", "llama.cpp"}) {
    const std::string out =
        (folder / (std::string("out-") + runtime + (runtime == std::string("llama.cpp") ? ".gguf" : ""))).string();
    const Outcome outcome = run_cinch({"export", in, out, "--runtime", runtime, "--json", "-q"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_EQ(outcome.json()["runtime"], runtime);
    EXPECT_EQ(outcome.json()["verification"]["exact"], true);
    EXPECT_NEAR(perplexity(out), perplexity(in), 1e-3) << runtime;
    const Outcome verified = run_cinch({"verify", out, "--runtime", runtime});
    EXPECT_EQ(verified.code, 0) << verified.err;
    EXPECT_THAT(verified.out, testing::HasSubstr(std::string(runtime) + " computes it"));
  }
  const std::string out = (folder / "out-vllm").string();
  const Outcome refused = run_cinch({"export", in, out, "--runtime", "vllm"});
  EXPECT_EQ(refused.code, 4);
  EXPECT_THAT(refused.err, testing::AllOf(testing::HasSubstr("[vllm/cache-width]"), testing::HasSubstr("16 + 8 = 24"),
                                          testing::HasSubstr("--pad-rank")));
  EXPECT_FALSE(std::filesystem::exists(out));
  EXPECT_EQ(run_cinch({"export", in, out, "--runtime", "vllm", "--pad-rank", "312", "-q"}).code, 0);
  EXPECT_NEAR(perplexity(out), perplexity(in), 1e-3);
}

TEST(ExportCommand, ApproximateExportsSayWhatTheyLeaveOut) {
  const TempFolder folder;
  const std::string model = repo_file("tests/golden/model/mistral").string(), out = (folder / "out.gguf").string();
  const Outcome refused = run_cinch({"export", model, out, "--format", "gguf"});
  EXPECT_EQ(refused.code, 4);
  EXPECT_THAT(refused.err,
              testing::AllOf(testing::HasSubstr("[llama.cpp/window]"), testing::HasSubstr("--allow-approximate")));
  const Outcome outcome = run_cinch({"export", model, out, "--format", "gguf", "--allow-approximate", "-q"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out,
              testing::AllOf(testing::HasSubstr("Left out: [llama.cpp/window]"), testing::HasSubstr("Measured: ")));
}

TEST(ExportCommand, ShardsAndSideFilesOfALatentModel) {
  const TempFolder folder;
  const std::string in = latent_stories(folder), out = (folder / "out").string();
  write_text(folder / "latent" / "chat_template.jinja", "{{ messages }}");
  ASSERT_EQ(run_cinch({"export", in, out, "--runtime", "hf", "--shard-size", "200KB", "-q"}).code, 0);
  EXPECT_TRUE(std::filesystem::exists(folder / "out" / "model.safetensors.index.json"));
  for (const char* name : {"tokenizer.json", "chat_template.jinja", "cinch.json", "verification.json"})
    EXPECT_TRUE(std::filesystem::exists(folder / "out" / name)) << name;
  EXPECT_NEAR(perplexity(out), perplexity(in), 1e-3);
  const std::string gguf = (folder / "out.gguf").string();
  ASSERT_EQ(run_cinch({"export", in, gguf, "--format", "gguf", "-q"}).code, 0);
  EXPECT_EQ(GgufSource::open(gguf)->text("tokenizer.chat_template"), "{{ messages }}");
  EXPECT_EQ(GgufSource::open(gguf)->texts("tokenizer.ggml.tokens").size(), 512u);
}

TEST(ExportCommand, BadSizesAndContradictionsAreUsageErrors) {
  const TempFolder folder;
  const std::string out = (folder / "out").string();
  for (const char* size : {"5", "GB", "0GB", "-1GB", "5gb", "5 GB", "99999999GB"}) {
    const Outcome outcome = run_cinch({"export", stories_model(), out, "--format", "hf", "--shard-size", size});
    EXPECT_EQ(outcome.code, 2) << size;
    EXPECT_THAT(outcome.err, testing::HasSubstr("--shard-size")) << size;
  }
  EXPECT_EQ(run_cinch({"export", stories_model(), out, "--runtime", "vllm", "--format", "gguf"}).code, 2);
  EXPECT_EQ(run_cinch({"export", stories_model(), out, "--runtime", "llama.cpp", "--format", "hf"}).code, 2);
  EXPECT_EQ(run_cinch({"export", stories_model(), out, "--runtime", "vlm"}).code, 2);
  EXPECT_EQ(run_cinch({"export", stories_model(), out, "--format", "hf", "--pad-rank", "-3"}).code, 2);
  EXPECT_EQ(run_cinch({"verify", stories_model(), "--runtime", "ollama"}).code, 2);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(ExportCommand, ConvertExportsInOneGo) {
  const TempFolder folder;
  const std::string out = (folder / "out").string(), gguf = (folder / "out.gguf").string();
  const std::vector<std::string> convert = {"convert",
                                            stories_model(),
                                            out,
                                            "--to",
                                            "mla",
                                            "--rank",
                                            "16",
                                            "--rope-dim",
                                            "8",
                                            "--calibration",
                                            repo_file("examples/stories/calibration.txt").string(),
                                            "--calibration-tokens",
                                            "4096",
                                            "--calibration-window",
                                            "128",
                                            "-q"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), convert.begin(), convert.end());
    return run_cinch(more);
  };
  EXPECT_EQ(with({"--for", "native", "--export", gguf}).code, 2);
  EXPECT_EQ(with({"--for", "hf", "--export", gguf}).code, 2);
  EXPECT_EQ(with({"--for", "llama.cpp", "--export", (folder / "x").string()}).code, 2);
  EXPECT_EQ(with({"--for", "vllm", "--export", (folder / "x").string()}).code, 4);  // 24 numbers, before any work
  EXPECT_EQ(with({"--for", "llama.cpp", "--slots", "shared"}).code, 4);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
  const Outcome outcome = with({"--export", gguf, "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(outcome.json()["export"]["runtime"], "llama.cpp");
  EXPECT_NEAR(perplexity(gguf), perplexity(out), 1e-3);
}

}  // namespace
}  // namespace cinch
