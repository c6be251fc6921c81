#include <fcntl.h>
#include <gmock/gmock.h>
#include <unistd.h>

#include "core/files.h"
#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

using testing::HasSubstr;

struct BadUsage {
  std::vector<std::string> arguments;
  int code;
  std::string message, help;
};

TEST(BadUsage, Table) {
  const std::string model = tiny_model();
  const std::vector<BadUsage> table = {
      {{}, 2, "no command given", "cinch --help"},
      {{"inspct", model}, 2, "unknown command \"inspct\"", "did you mean `cinch inspect`?"},
      {{"--jsn", "doctor"}, 2, "unknown flag --jsn", "did you mean --json?"},
      {{"inspect", model, "--tensor"}, 2, "unknown flag --tensor for `cinch inspect`", "did you mean --tensors?"},
      {{"inspect", "--jsn"}, 2, "unknown flag --jsn for `cinch inspect`", "did you mean --json?"},
      {{"inspect"}, 2, "MODEL", "cinch inspect --help"},
      {{"inspect", model, "more"}, 2, "does not take the argument \"more\"", "cinch inspect --help"},
      {{"inspect", "/nowhere/at/all"}, 2, "MODEL: no such file or folder: /nowhere/at/all", "Hugging Face folder"},
      {{"--quiet", "-v", "doctor"}, 2, "--quiet and --verbose contradict", ""},
      {{"doctor", "--threads", "0"}, 2, "--threads: expected 1 to 4096, found 0", ""},
      {{"doctor", "--threads", "two"}, 2, "--threads: expected", "--help"},
      {{"doctor", "--threads", "99999999"}, 2, "--threads: expected 1 to 4096, found 99999999", "every core"},
      {{"doctor", "--threads", "99999999999999999999"},
       2,
       "--threads: expected a whole number, found \"9999",
       "--help"},
      {{"eval", model}, 2, "needs --text or --tokens", "--text FILE"},
      {{"eval", model, "--text", "a", "--tokens", "b"}, 2, "--text and --tokens contradict", ""},
      {{"eval", model, "--text", "/nowhere.txt"}, 2, "--text: no such file or folder: /nowhere.txt", ""},
      {{"eval", model, "--text", "/dev/null", "--window", "wide"},
       2,
       "--window: expected a whole number, found \"wide\"",
       "cinch eval --help"},
      {{"eval", model, "--text", "/dev/null", "--protocol", "ppl"},
       2,
       "unknown perplexity protocol \"ppl\"",
       "ppl-gptq-W"},
      {{"eval", model, "--text", "/dev/null", "--window", "-3"}, 2, "--window", ""},
      {{"eval", model, "--text", "/dev/null", "--dtype", "f31"}, 2, "--dtype: unknown value \"f31\"", "did you mean"},
      {{"eval", model, "--text", "/dev/null", "--device", "gpu"}, 2, "--device: unknown device \"gpu\"", "cuda:N"},
      {{"eval", model, "--text", "/dev/null", "--stride", "5"},
       2,
       "--stride has no meaning for ppl-gptq",
       "ppl-stride"},
      {{"eval", model, "--text", "/dev/null", "--protocol", "ppl-gptq-64", "--window", "32"}, 2, "contradict", ""},
      {{"eval", model, "--text", "/dev/null"}, 2, "has no tokenizer", "tokenizer.json"},
      {{"eval", model, "--text", "/dev/null", "--logits", "x.npy"}, 2, "--logits needs --tokens", ""},
      {{"generate", stories_model(), "--prompt", "a", "-n", "0"}, 2, "-n: expected 1 or more", ""},
      {{"generate", stories_model(), "--prompt", "a", "--temperature", "-1"}, 2, "--temperature", ""},
      {{"generate", stories_model(), "--prompt", "a", "--top-p", "1.5"},
       2,
       "--top-p: expected a number in (0, 1], found 1.5",
       ""},
      {{"export", model, "out", "--format", "ggu"}, 2, "--format: unknown value \"ggu\"", "did you mean \"gguf\"?"},
      {{"export", model, "out"}, 2, "--format", "cinch export --help"},
      {{"export", model, "out", "--format", "hf", "--dtype", "q8_0"},
       2,
       "--dtype q8_0 exists only in gguf files",
       "--format gguf"},
      {{"tokenize", "a.txt", "out.bin", "--model", model}, 2, "OUT must end in .h5, found out.bin", ""},
      {{"tokenize", "/nowhere.txt", "out.h5", "--model", model}, 2, "TEXT: no such file or folder", ""},
      {{"verify", "/nowhere"}, 2, "PATH: no such file or folder", "model folder"},
      {{"verify", std::string(300, 'n')}, 2, "PATH: no such file or folder", "model folder"},
      {{"inspect", ""}, 2, "MODEL: the value is empty", "cinch inspect --help"},
      {{"plan", model, "--to", "mqa", "--layers", ""}, 2, "--layers: the value is empty", "cinch plan --help"},
      {{"eval", model, "--text", "/dev/null", "--reference", ""}, 2, "--reference: the value is empty", ""},
      {{"convert", model, "out", "--to", "mqa", "--calibration-tokens", "99999999999999999999"},
       2,
       "--calibration-tokens: expected a whole number, found 99999999999999999999",
       "cinch convert --help"},
      {{"convert", model, "out", "--to", "mqa", "--seed", "-1"},
       2,
       "--seed: expected a whole number, 0 or more, found -1",
       ""},
      {{"convert", model, "out", "--to", "mqa", "--refit-lambdas", "a"}, 2, "expected a number, found \"a\"", ""},
      {{"convert", model, "out", "--to", "mqa", "--lag-tail", "a"}, 2, "expected a number between 0 and 1, found", ""},
      {{"convert", model, "out", "--to", "mqa", "--search-groups", "maybe"}, 2, "expected true or false, found", ""},
      {{"convert", model, "out", "--to", "mqa", "--method="}, 2, "--method: needs a value (NAME)", "--help"},
      {{"convert", model, "out", "--to", "mqa", "--calibration", "/nowhere.txt"},
       2,
       "--calibration: /nowhere.txt: no such file or folder",
       "cinch convert --help"},
      {{"plan", model, "--to", "mqa", "--calibration-window", "7"}, 2, "at least 8 tokens", "cinch plan --help"},
      {{"completion", "bsh"}, 2, "SHELL: unknown value \"bsh\"", "did you mean \"bash\"?"},
      {{"plan", model}, 2, "--to is missing", "--to mqa"},
      {{"convert", model, "out", "--to", "mqa", "--config", "/nowhere.toml"}, 2, "--config", ""},
  };
  for (const BadUsage& bad : table) {
    const Outcome outcome = run_cinch(bad.arguments);
    std::string shown = "cinch";
    for (const std::string& argument : bad.arguments) shown += " " + argument;
    EXPECT_EQ(outcome.code, bad.code) << shown << "\n" << outcome.err;
    EXPECT_THAT(outcome.err, testing::StartsWith("error: ")) << shown;
    EXPECT_THAT(outcome.err, HasSubstr(bad.message)) << shown;
    const size_t help = outcome.err.find("\nhelp: ");
    ASSERT_NE(help, std::string::npos) << shown << "\n" << outcome.err;
    EXPECT_THAT(outcome.err.substr(help), HasSubstr(bad.help)) << shown;
    EXPECT_EQ(outcome.out, "") << shown;
  }
}

TEST(RunProgram, BadFilesExitWith3) {
  const TempFolder folder;
  std::filesystem::create_directory(folder / "broken");
  write_text(folder / "broken" / "config.json", "{\"model_type\": ");
  const Outcome broken = run_cinch({"inspect", (folder / "broken").string()});
  EXPECT_EQ(broken.code, 3) << broken.err;
  EXPECT_THAT(broken.err, HasSubstr("config.json"));

  write_text(folder / "model.gguf", "GGUF nonsense");
  EXPECT_EQ(run_cinch({"inspect", (folder / "model.gguf").string()}).code, 3);
}

TEST(RunProgram, UnknownFamilyExitsWith4) {
  const TempFolder folder;
  write_text(folder / "config.json", "{\"model_type\": \"llama9\", \"architectures\": [\"Llama9ForCausalLM\"]}");
  const Outcome outcome = run_cinch({"inspect", folder.path().string()});
  EXPECT_EQ(outcome.code, 4) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("llama9"));
}

TEST(RunProgram, HelpAndVersion) {
  const Outcome help = run_cinch({"--help"});
  EXPECT_EQ(help.code, 0);
  for (const Command& command : commands()) EXPECT_THAT(help.out, HasSubstr("  " + command.name + " "));
  EXPECT_EQ(help.err, "");
  const Outcome version = run_cinch({"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_THAT(version.out, testing::MatchesRegex("cinch [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

TEST(RunProgram, ACommandsNameMayBeAPath) {
  const Outcome outcome = run_cinch({"inspect", "plan"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("MODEL: no such file or folder: plan"));
}

TEST(RunProgram, AClosedPipeIsFine) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  close(ends[0]);
  const int kept = dup(STDOUT_FILENO);
  dup2(ends[1], STDOUT_FILENO);
  const char* argv[] = {"cinch", "--help"};
  const int code = run_program(2, argv);
  dup2(kept, STDOUT_FILENO);
  close(kept);
  close(ends[1]);
  EXPECT_EQ(code, 0);
}

TEST(RunProgram, AFullStdoutExitsWith6) {
  const int kept = dup(STDOUT_FILENO);
  const int full = open("/dev/full", O_WRONLY);
  ASSERT_GE(full, 0);
  dup2(full, STDOUT_FILENO);
  testing::internal::CaptureStderr();
  const char* argv[] = {"cinch", "--help"};
  const int code = run_program(2, argv);
  const std::string error = testing::internal::GetCapturedStderr();
  dup2(kept, STDOUT_FILENO);
  close(kept);
  close(full);
  EXPECT_EQ(code, 6);
  EXPECT_THAT(error, HasSubstr("standard output"));
}

}  // namespace
}  // namespace cinch
