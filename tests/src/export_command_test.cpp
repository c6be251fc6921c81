#include <gmock/gmock.h>

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

}  // namespace
}  // namespace cinch
