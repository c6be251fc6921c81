#include <gmock/gmock.h>

#include "checkpoints/checkpoint_format.h"
#include "tests/checkpoints/helpers.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using ::testing::HasSubstr;

void write_one(const std::string& format, const std::filesystem::path& path) {
  const auto sink = checkpoint_format(format).create({.path = path});
  sink->declare({{"a", Dtype::kF32, {4}, ""}});
  sink->write("a", counting_bytes(16));
  sink->commit();
}

TEST(FormatList, NamesAreKnown) {
  EXPECT_EQ(checkpoint_format("gguf").name(), "gguf");
  EXPECT_THROW(checkpoint_format("pickle"), UsageError);
}

TEST(OpenTensors, SniffsFilesByContent) {
  const TempFolder folder;
  for (const std::string format : {"safetensors", "hdf5", "gguf"}) {
    write_one(format, folder / "misleading.name");
    EXPECT_EQ(open_tensors(folder / "misleading.name")->format(), format);
  }
}

TEST(OpenTensors, SniffsFolders) {
  const TempFolder folder;
  std::filesystem::create_directory(folder / "st");
  std::filesystem::create_directory(folder / "h5");
  write_one("safetensors", folder / "st/model.safetensors");
  write_one("hdf5", folder / "h5/model.h5");
  EXPECT_EQ(open_tensors(folder / "st")->format(), "safetensors");
  EXPECT_EQ(open_tensors(folder / "h5")->format(), "hdf5");
}

TEST(OpenTensors, RefusesPickleWithTheWayOut) {
  const TempFolder folder;
  write_text(folder / "pytorch_model.bin", "PK\x03\x04");
  for (const auto& path : {folder.path(), folder / "pytorch_model.bin"}) {
    try {
      open_tensors(path);
      FAIL();
    } catch (const CheckpointError& error) {
      EXPECT_THAT(error.what(), HasSubstr("pickle"));
      EXPECT_THAT(error.help(), HasSubstr("safe_serialization"));
    }
  }
}

TEST(OpenTensors, NothingThere) {
  const TempFolder folder;
  EXPECT_THAT(fault_of([&] { open_tensors(folder / "absent"); }), HasSubstr("no such file"));
  EXPECT_THAT(fault_of([&] { open_tensors(folder.path()); }), HasSubstr("no model tensors"));
  write_text(folder / "empty", "");
  EXPECT_THAT(fault_of([&] { open_tensors(folder / "empty"); }), HasSubstr("no model tensors"));
  write_text(folder / "empty.safetensors", "");
  EXPECT_THAT(fault_of([&] { open_tensors(folder / "empty.safetensors"); }), HasSubstr("too short"));
}

}  // namespace
}  // namespace cinch
