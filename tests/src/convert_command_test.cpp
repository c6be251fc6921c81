#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/json.h"
#include "src/command.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using testing::HasSubstr;

struct Outcome {
  int code;
  std::string out, err;
};

Outcome cinch(std::vector<std::string> args) {
  args.insert(args.begin(), "cinch");
  std::vector<const char*> argv;
  for (const std::string& arg : args) argv.push_back(arg.c_str());
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int code = run_program(static_cast<int>(argv.size()), argv.data());
  std::string out = testing::internal::GetCapturedStdout();
  return {code, std::move(out), testing::internal::GetCapturedStderr()};
}

std::string stories() { return repo_file("examples/stories260K").string(); }

TEST(PlanCommand, PrintsATableAndJson) {
  const Outcome text = cinch({"plan", stories(), "--to", "gqa:2", "--method", "mean"});
  EXPECT_EQ(text.code, 0) << text.err;
  for (const char* part : {"KV heads per layer", "50.0 %", "llama.cpp", "loads"})
    EXPECT_THAT(text.out, HasSubstr(part));
  const Outcome json = cinch({"plan", stories(), "--to", "mqa", "--method", "mean", "--json"});
  EXPECT_EQ(parse_json(json.out, "stdout")["kv_ratio"], 0.25);
}

TEST(PlanCommand, RefusalsHaveTheirExitCodes) {
  const Outcome larger = cinch({"plan", stories(), "--to", "gqa:8", "--method", "mean"});
  EXPECT_EQ(larger.code, 4);
  EXPECT_THAT(larger.err, HasSubstr("gqa:2"));
  EXPECT_EQ(cinch({"plan", stories()}).code, 2);
  EXPECT_EQ(cinch({"plan", stories(), "--to", "mqa", "--layers", "0-1"}).code, 4);
  EXPECT_EQ(cinch({"plan", "/nowhere", "--to", "mqa"}).code, 2);
}

TEST(ConvertCommand, ConvertsTheBundledModel) {
  TempFolder folder;
  const std::string out = (folder / "out").string();
  const Outcome json = cinch({"convert", stories(), out, "--to", "gqa:2", "--method", "mean", "--json"});
  ASSERT_EQ(json.code, 0) << json.err;
  const Json report = parse_json(json.out, "stdout");
  for (const char* key : {"output", "kv_ratio", "seconds", "peak_memory_bytes", "layers", "verification"})
    EXPECT_TRUE(report.contains(key)) << key;
  EXPECT_EQ(report["layers"].size(), 5u);
  const Outcome again = cinch({"convert", stories(), out, "--to", "gqa:2", "--method", "mean"});
  EXPECT_EQ(again.code, 2);
  EXPECT_THAT(again.err, HasSubstr("--force"));
  const Outcome verified = cinch({"verify", out});
  EXPECT_EQ(verified.code, 0) << verified.err;
}

TEST(ConvertCommand, NamesMayBeAnyBytes) {
  const TempFolder folder;
  const std::string model = (folder / "mod\xff\x1b[2Jel").string(), out = (folder / "o\xfeut").string();
  std::filesystem::copy(stories(), model);
  const std::vector<std::string> convert = {"convert",  model,  out,          "--to", "mqa",
                                            "--method", "mean", "--no-refit", "-q"};
  EXPECT_EQ(cinch(convert).code, 0);
  EXPECT_EQ(cinch({"verify", out, "-q"}).code, 0);
  std::vector<std::string> again = convert;
  again.emplace_back("--resume");
  EXPECT_EQ(cinch(again).code, 0) << "the recorded names are those of the first run";
  EXPECT_EQ(cinch({"export", model, out + "2", "--format", "hf", "-q"}).code, 0);
  const Outcome refused = cinch(convert);
  EXPECT_EQ(refused.code, 2);
  const Outcome foreign = cinch({"plan", model, "--to", "gqa:3"});
  EXPECT_EQ(foreign.code, 4);
  const Outcome absent = cinch({"inspect", model + "2"});
  EXPECT_EQ(absent.err.find('\x1b'), std::string::npos) << "a terminal must not act on a name";
}

TEST(ConvertCommand, DryRunWritesNothing) {
  TempFolder folder;
  EXPECT_EQ(
      cinch({"convert", stories(), (folder / "out").string(), "--to", "mqa", "--method", "mean", "--dry-run"}).code, 0);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(ConvertCommand, ARecipeIsTheSameAsFlags) {
  const Outcome recipe = cinch(
      {"convert", "model", "out", "--config", repo_file("configs/smollm2-135m-mqa.toml").string(), "--print-config"});
  EXPECT_EQ(recipe.code, 0) << recipe.err;
  EXPECT_THAT(recipe.out, HasSubstr("to = \"mqa\""));
}

}  // namespace
}  // namespace cinch
