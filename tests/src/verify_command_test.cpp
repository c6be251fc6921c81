#include <gmock/gmock.h>

#include <fstream>

#include "core/files.h"
#include "tests/src/run_cinch.h"

namespace cinch {
namespace {

/// Changes the last byte: the exponent or sign of the last number of the last tensor.
void damage(const std::filesystem::path& file) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekg(-1, std::ios::end);
  const auto byte = static_cast<char>(stream.get() ^ 0x01);
  stream.seekp(-1, std::ios::end);
  stream.put(byte);
}

TEST(VerifyCommand, FindsADamagedTensor) {
  const TempFolder folder;
  const std::string out = (folder / "out").string();
  ASSERT_EQ(run_cinch({"export", stories_model(), out, "--format", "hf", "-q"}).code, 0);
  const Outcome good = run_cinch({"verify", out, "--json", "-q"});
  EXPECT_EQ(good.code, 0) << good.err;
  EXPECT_EQ(good.json()["digests_compared"], good.json()["tensors"]);
  damage(folder / "out" / "model.safetensors");
  const Outcome bad = run_cinch({"verify", out, "-q"});
  EXPECT_EQ(bad.code, 5);
  EXPECT_THAT(bad.err, testing::HasSubstr("cinch.json records"));
  EXPECT_THAT(bad.err, testing::HasSubstr("help: "));
  EXPECT_EQ(bad.out, "");
}

TEST(VerifyCommand, FindsALostTensor) {
  const TempFolder folder;
  const std::string out = (folder / "out").string();
  ASSERT_EQ(run_cinch({"export", stories_model(), out, "--format", "hf", "-q"}).code, 0);
  Json record = parse_json(read_text(folder / "out" / "cinch.json"), "cinch.json");
  record["digests"]["model.extra.weight"] = "00";
  write_text(folder / "out" / "cinch.json", record.dump());
  const Outcome outcome = run_cinch({"verify", out, "-q"});
  EXPECT_EQ(outcome.code, 5);
  EXPECT_THAT(outcome.err, testing::HasSubstr("model.extra.weight: recorded in cinch.json, absent"));
}

TEST(VerifyCommand, ModelsWithoutRecordsAreCheckedForStructure) {
  const Outcome outcome = run_cinch({"verify", tiny_model()});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, testing::HasSubstr("no digests recorded"));
}

}  // namespace
}  // namespace cinch
