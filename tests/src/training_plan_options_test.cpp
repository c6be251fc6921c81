#include <gmock/gmock.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <random>

#include "checkpoints/checkpoint_format.h"
#include "core/files.h"
#include "model/config_source.h"
#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

using testing::HasSubstr;

std::string write_config(const TempFolder& folder, const Json& changes = Json::object()) {
  Json config = {{"architectures", {"LlamaForCausalLM"}},
                 {"model_type", "llama"},
                 {"hidden_size", 512},
                 {"intermediate_size", 1536},
                 {"num_hidden_layers", 6},
                 {"num_attention_heads", 8},
                 {"num_key_value_heads", 4},
                 {"vocab_size", 4096},
                 {"max_position_embeddings", 2048},
                 {"rms_norm_eps", 1e-5},
                 {"rope_theta", 10000.0},
                 {"hidden_act", "silu"},
                 {"tie_word_embeddings", true},
                 {"torch_dtype", "float32"}};
  config.update(changes);
  std::filesystem::create_directories(folder / "model");
  const std::filesystem::path path = folder / "model" / "config.json";
  write_text(path, config.dump(1));
  return path.string();
}

std::vector<std::string> plan(const std::string& model, const std::vector<std::string>& more) {
  std::vector<std::string> arguments = {"plan", model, "--uptrain"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(TrainingPlanOptions, PlansTheStudentOfAConversion) {
  const TempFolder folder;
  const std::string config = write_config(folder);
  const Outcome outcome =
      run_cinch(plan(config, {"--to", "mla", "--kv-budget", "25%", "--world", "8", "--device-memory", "80GiB",
                              "--device-flops", "4e14", "--train-dtype", "bf16", "--json"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const Json json = outcome.json(), training = json["uptraining"];
  EXPECT_EQ(training["parameters"], json["target"]["parameters"]);
  EXPECT_EQ(training["world"], 8);
  EXPECT_EQ(training["micro_batch"], 4);
  EXPECT_EQ(training["batch"], 32) << "a micro-batch of every process";
  EXPECT_EQ(training["memory"].size(), 4);
  EXPECT_EQ(training["zero"], 0);
  EXPECT_EQ(training["device_memory_bytes"], int64_t{80} << 30);
  EXPECT_GT(training["seconds_estimate"].get<double>(), 0);
  // The source's attention is the teacher's own part.
  EXPECT_EQ(training["teacher_parameters"], 6 * (2 * 512 * 512 + 2 * 256 * 512));
}

TEST(TrainingPlanOptions, PlansAModelAsItIs) {
  const TempFolder folder;
  const std::string config = write_config(folder);
  const std::vector<std::string> device = {"--device-memory", "16GB", "--tokens", "1000000"};
  Outcome outcome = run_cinch(plan(config, device));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("without a teacher"));
  EXPECT_THAT(outcome.out, HasSubstr("Give --device-flops for the time"));
  EXPECT_THAT(outcome.out, testing::Not(HasSubstr("KV heads")));
  std::vector<std::string> taught = device;
  taught.insert(taught.end(), {"--teacher", config, "--world", "2"});
  outcome = run_cinch(plan(config, taught));
  EXPECT_THAT(outcome.out, HasSubstr("with a teacher"));
  EXPECT_THAT(outcome.out, HasSubstr("ZeRO 3"));
  EXPECT_THAT(outcome.out, HasSubstr("with --zero 0"));
}

TEST(TrainingPlanOptions, MeasuresThisMachineUnlessAnotherIsGiven) {
  const TempFolder folder;
  const std::string config = write_config(folder);
  const Json here = run_cinch(plan(config, {"--json"})).json()["uptraining"];
  EXPECT_GT(here["device_memory_bytes"].get<int64_t>(), 0);
  EXPECT_GT(here["tokens_per_second"].get<double>(), 0);
}

TEST(TrainingPlanOptions, SaysWhatIsMissing) {
  const TempFolder folder;
  const std::string config = write_config(folder);
  const Outcome tight = run_cinch(plan(config, {"--device-memory", "700MiB", "--micro-batch", "4"}));
  EXPECT_EQ(tight.code, 0);
  EXPECT_THAT(tight.out, HasSubstr("Does not fit into 700.0 MiB; it would with --micro-batch 2: "));

  const auto fails = [&](std::vector<std::string> more, const std::string& what) {
    const Outcome outcome = run_cinch(plan(config, std::move(more)));
    EXPECT_EQ(outcome.code, 2);
    EXPECT_THAT(outcome.err, HasSubstr(what));
  };
  fails({"--device-memory", "80"}, "--device-memory: \"80\" is not a size");
  fails({"--window", "4096"}, "the student's context is 2048");
  fails({"--batch", "6", "--micro-batch", "4"}, "--batch 6 does not divide into micro-batches of 4");
  fails({"--world", "0"}, "--world 0: expected a number above 0");
  fails({"--trainable", "some"}, "--trainable");
  fails({"--train-dtype", "f16"}, "--train-dtype");
  EXPECT_EQ(run_cinch({"plan", config, "--to", "mqa", "--world", "2"}).code, 2) << "without --uptrain";
}

TEST(TrainingPlanOptions, ALargeModelOfAConfigAlone) {
  const TempFolder folder;
  const std::string config = write_config(folder, {{"hidden_size", 8192},
                                                   {"intermediate_size", 28672},
                                                   {"num_hidden_layers", 80},
                                                   {"num_attention_heads", 64},
                                                   {"num_key_value_heads", 8},
                                                   {"vocab_size", 128256},
                                                   {"max_position_embeddings", 8192},
                                                   {"tie_word_embeddings", false},
                                                   {"torch_dtype", "bfloat16"}});
  const Json json = run_cinch(plan(config, {"--to", "mla", "--kv-budget", "25%", "--world", "8", "--device", "cuda",
                                            "--device-memory", "80GiB", "--train-dtype", "bf16", "--window", "4096",
                                            "--micro-batch", "1", "--recompute", "--json"}))
                        .json();
  EXPECT_EQ(json["source"]["parameters"], 70'553'706'496);
  EXPECT_EQ(json["uptraining"]["zero"], 3);
}

/// Random weights for a config, in its folder.
void write_weights(const std::filesystem::path& config) {
  const auto source = open_config(config);
  const auto sink = checkpoint_format("safetensors").create({.path = config.parent_path() / "model.safetensors"});
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 0.02F);
  sink->declare(source->tensors().tensors());
  for (const TensorInfo& info : source->tensors().tensors()) {
    int64_t count = 1;
    for (const int64_t size : info.shape) count *= size;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(random);
    const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
    sink->write(info.name, {bytes, bytes + values.size() * sizeof(float)});
  }
  sink->commit();
}

constexpr int64_t kBatch = 4, kWindow = 512;

/// What the child process of the test below does: two steps in a folder that holds a model and data.
void uptrain_in(const std::filesystem::path& folder, bool recompute) {
  std::vector<std::string> arguments = {"uptrain",
                                        folder / "model",
                                        folder / "out",
                                        "--teacher",
                                        folder / "model",
                                        "--data",
                                        folder / "data.ids",
                                        "--tokens",
                                        std::to_string(2 * kBatch * kWindow),
                                        "--window",
                                        std::to_string(kWindow),
                                        "--batch",
                                        std::to_string(kBatch),
                                        "--micro-batch",
                                        std::to_string(kBatch),
                                        "--validation-windows",
                                        "1",
                                        "--force",
                                        "-q"};
  if (recompute) arguments.push_back("--recompute");
  const Outcome outcome = run_cinch(arguments);
  ASSERT_EQ(outcome.code, 0) << outcome.err;
}

/// Most memory of a process that runs the current test again, which finds `words` in CINCH_TEST_CHILD.
int64_t peak_of_child(const std::string& words) {
  ::setenv("CINCH_TEST_CHILD", words.c_str(), 1);
  const auto* test = testing::UnitTest::GetInstance()->current_test_info();
  std::string program = "/proc/self/exe", brief = "--gtest_brief=1";
  std::string filter = std::string("--gtest_filter=") + test->test_suite_name() + "." + test->name();
  char* argv[] = {program.data(), brief.data(), filter.data(), nullptr};
  pid_t child = 0;
  EXPECT_EQ(::posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, argv, environ), 0);
  ::unsetenv("CINCH_TEST_CHILD");
  int status = 0;
  rusage usage = {};
  EXPECT_EQ(::wait4(child, &status, 0, &usage), child);
  EXPECT_EQ(status, 0);
  return usage.ru_maxrss * 1024;
}

/// The plan's allowance for the program and the allocator's holes make this a bound of a quarter; what tensors take is
/// compared to the byte in tests/train.
TEST(SlowTrainingPlan, IsNearTheMemoryThatAProcessTakes) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the address sanitizer keeps freed memory";
#endif
  if (const char* words = std::getenv("CINCH_TEST_CHILD"); words != nullptr) {
    const std::string text = words;
    return uptrain_in(text.substr(1), text.front() == '1');
  }
  const TempFolder folder;
  const std::string config = write_config(folder);
  write_weights(config);
  std::string ids;
  for (int64_t i = 0; i < 4 * kBatch * kWindow; ++i) ids += std::to_string((i * 7919) % 4096) + "\n";
  write_text(folder / "data.ids", ids);
  for (const bool recompute : {false, true}) {
    std::vector<std::string> arguments = {"--teacher",       config,  "--batch", std::to_string(kBatch),
                                          "--device-memory", "16GiB", "--json"};
    if (recompute) arguments.push_back("--recompute");
    const Json planned = run_cinch(plan(config, arguments)).json()["uptraining"];
    const auto bytes = planned["memory"][0]["total_bytes"].get<double>();
    const auto found = static_cast<double>(peak_of_child((recompute ? "1" : "0") + folder.path().string()));
    EXPECT_NEAR(bytes, found, 0.25 * found) << (recompute ? "with" : "without") << " recomputation";
  }
}

}  // namespace
}  // namespace cinch
