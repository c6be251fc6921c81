#include <gmock/gmock.h>

#include <fstream>

#include "core/files.h"
#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

std::string calibration_text() { return repo_file("examples/stories/calibration.txt").string(); }

/// stories260K with its heads averaged: much to heal.
std::string averaged_stories(const TempFolder& folder) {
  const std::string out = (folder / "student").string();
  EXPECT_EQ(run_cinch({"convert", stories_model(), out, "--to", "mqa", "--method", "mean", "--format", "native",
                       "--calibration", calibration_text(), "--calibration-tokens", "2048", "--calibration-window",
                       "64", "-q"})
                .code,
            0);
  return out;
}

std::vector<std::string> uptrain(const std::string& student, const std::string& out, std::vector<std::string> more) {
  std::vector<std::string> arguments = {
      "uptrain",  student, out,    "--teacher", stories_model(), "--data", calibration_text(), "--tokens", "12288",
      "--window", "64",    "--lr", "3e-3",      "--batch",       "4",      "--micro-batch",    "2",        "-q"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(UptrainCommand, HealsAModelThatEveryCommandTakes) {
  const TempFolder folder;
  const std::string student = averaged_stories(folder), out = (folder / "healed").string();
  const Outcome outcome = run_cinch(uptrain(student, out, {"--json"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json json = outcome.json();
  EXPECT_EQ(json["steps"], 48);
  EXPECT_LT(json["after"]["kl"].get<double>(), 0.8 * json["before"]["kl"].get<double>());
  EXPECT_EQ(run_cinch({"verify", out}).code, 0);
  EXPECT_EQ(run_cinch({"export", out, (folder / "hf").string(), "--format", "hf", "-q"}).code, 0);
  EXPECT_EQ(run_cinch({"generate", out, "--prompt", "Once", "-n", "3", "-q"}).code, 0);
  const Json record = parse_json(read_text(folder / "healed" / "cinch.json"), "cinch.json");
  EXPECT_EQ(record["report"]["steps"], 48);
  EXPECT_THAT(read_text(folder / "healed" / "README.md"), testing::HasSubstr("KL to the teacher"));
  const std::string metrics = read_text(folder / "healed" / "metrics.jsonl");
  EXPECT_EQ(std::count(metrics.begin(), metrics.end(), '\n'), json["steps"].get<int64_t>());
  EXPECT_THAT(metrics, testing::HasSubstr("\"tokens_per_second\""));
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    EXPECT_THAT(entry.path().filename().string(), testing::Not(testing::HasSubstr("cinch-train")));
}

TEST(UptrainCommand, TheSameSeedGivesTheSameBytes) {
  const TempFolder folder;
  const std::string student = averaged_stories(folder);
  std::vector<std::string> weights;
  for (const char* name : {"a", "b"}) {
    ASSERT_EQ(run_cinch(uptrain(student, (folder / name).string(), {})).code, 0);
    weights.push_back(read_text(folder / name / "model.safetensors"));
  }
  EXPECT_EQ(weights[0], weights[1]);
}

TEST(UptrainCommand, BadUsage) {
  const TempFolder folder;
  const std::string out = (folder / "out").string(), student = stories_model();
  const auto code = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"uptrain", student, out, "--data", calibration_text()});
    const Outcome outcome = run_cinch(more);
    EXPECT_THAT(outcome.err, testing::HasSubstr("help: "));
    return outcome.code;
  };
  EXPECT_EQ(code({"--teacher", student}), 2);                                            // no --tokens
  EXPECT_EQ(code({"--tokens", "1000"}), 2);                                              // no teacher
  EXPECT_EQ(code({"--teacher", student, "--tokens", "1000", "--window", "4096"}), 2);    // beyond the context
  EXPECT_EQ(code({"--teacher", student, "--tokens", "1000", "--batch", "0"}), 2);        // nothing
  EXPECT_EQ(code({"--teacher", student, "--tokens", "1000", "--schedule", "step"}), 2);  // unknown
  EXPECT_EQ(code({"--teacher", student, "--tokens", "1000", "--trainable", "mlp"}), 2);
  EXPECT_EQ(code({"--teacher", student, "--tokens", "1000", "--zero", "4"}), 2);
  EXPECT_EQ(code({"--teacher", student, "--tokens", "1000", "--keep", "0"}), 2);
  EXPECT_EQ(code({"--teacher", student, "--tokens", "-5"}), 2);
  EXPECT_EQ(code({"--teacher", student, "--tokens", "1000", "--kd", "0"}), 2);  // nothing to learn
  EXPECT_EQ(code({"--teacher", "/nowhere", "--tokens", "1000"}), 2);
  EXPECT_FALSE(std::filesystem::exists(out));
  std::ofstream(folder / "short.txt") << "Once upon a time.";
  EXPECT_EQ(run_cinch({"uptrain", student, out, "--teacher", student, "--tokens", "1000", "--data",
                       (folder / "short.txt").string()})
                .code,
            2);
  std::ofstream(folder / "foreign.ids") << "1 2 3 99999 4";
  EXPECT_EQ(run_cinch({"uptrain", student, out, "--teacher", student, "--tokens", "1000", "--data",
                       (folder / "foreign.ids").string()})
                .code,
            3);
}

}  // namespace
}  // namespace cinch
