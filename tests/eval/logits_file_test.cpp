#include "eval/logits_file.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstring>

#include "core/errors.h"
#include "core/files.h"
#include "tests/eval/golden.h"

namespace cinch {
namespace {

TEST(LogitsFile, EqualsTransformers) {
  const TempFolder folder;
  const Json golden = golden_eval();
  const auto sequence = golden["sequence"].get<std::vector<int64_t>>();
  write_logits(golden_model("model"), {{5, 6, 7}, sequence}, folder / "logits.npy", at::kFloat, at::kCPU);
  const std::string file = read_text(folder / "logits.npy");
  ASSERT_EQ(file.substr(1, 5), "NUMPY");
  const size_t header = 10 + static_cast<uint8_t>(file[8]) + 256 * static_cast<uint8_t>(file[9]);
  EXPECT_EQ(header % 64, 0u);
  EXPECT_NE(file.find("'shape': (20, 61)"), std::string::npos);
  ASSERT_EQ(file.size(), header + 20 * 61 * 4);
  const auto expected = golden["last_logits"].get<std::vector<double>>();
  for (size_t v = 0; v < 61; ++v) {
    float value = 0;
    std::memcpy(&value, file.data() + header + (19 * 61 + v) * 4, 4);
    EXPECT_NEAR(value, expected[v], 1e-4);
  }
}

TEST(LogitsFile, ReadsSequencesByLine) {
  const TempFolder folder;
  write_text(folder / "t.txt", "1 2 3\n\n 4\t5 \n");
  EXPECT_EQ(read_sequences(folder / "t.txt"), (std::vector<std::vector<int64_t>>{{1, 2, 3}, {4, 5}}));
  write_text(folder / "bad.txt", "1 2\n3 x\n");
  try {
    read_sequences(folder / "bad.txt");
    FAIL() << "a word that is no id was taken";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("line 2"), std::string::npos);
  }
  write_text(folder / "empty.txt", "\n");
  EXPECT_THROW(read_sequences(folder / "empty.txt"), ConfigError);
}

TEST(LogitsFile, ForeignIdsLeaveNothing) {
  const TempFolder folder;
  EXPECT_THROW(write_logits(golden_model("model"), {{5, 61}}, folder / "logits.npy", at::kFloat, at::kCPU), UsageError);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace cinch
