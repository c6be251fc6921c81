#include "core/hdf5.h"

#include <gmock/gmock.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>

#include "core/errors.h"
#include "core/files.h"
#include "core/hdf5_seal.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using ::testing::HasSubstr;

std::span<const std::byte> bytes_of(const std::vector<float>& values) { return std::as_bytes(std::span(values)); }

TEST(Hdf5, RowsGoToTheirPlace) {
  const TempFolder folder;
  {
    Hdf5Writer writer(folder / "a.h5");
    writer.create("x", Dtype::kF32, {3, 2});
    writer.write_rows("x", 1, bytes_of({3, 4, 5, 6}));
    writer.write_rows("x", 0, bytes_of({1, 2}));
    writer.set_attribute("x", "note", "hello");
    writer.set_attribute("", "root", "r");
    EXPECT_THROW(writer.write_rows("x", 2, bytes_of({1, 2, 3})), ShapeError);
    EXPECT_THROW(writer.write_rows("x", -1, bytes_of({1, 2})), ShapeError);
    EXPECT_THROW(writer.write_rows("x", 4, {}), ShapeError);
    EXPECT_THROW(writer.write_rows("y", 0, {}), Error);
    writer.close();
  }
  const Hdf5Reader reader(folder / "a.h5");
  const auto datasets = reader.datasets();
  ASSERT_EQ(datasets.size(), 1u);
  EXPECT_EQ(datasets[0].name, "x");
  EXPECT_EQ(datasets[0].offset % 4096, 0u);
  const std::string file = read_text(folder / "a.h5");
  std::vector<float> stored(6);
  std::memcpy(stored.data(), file.data() + datasets[0].offset, 24);
  EXPECT_EQ(stored, (std::vector<float>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(reader.text_attribute("x", "note"), "hello");
  EXPECT_EQ(reader.text_attribute("", "root"), "r");
  EXPECT_FALSE(reader.text_attribute("x", "absent").has_value());
}

/// Writes until a file of 64 KiB is full, then ends the process: 3 where that was noticed.
[[noreturn]] void fill_the_disk(const std::filesystem::path& path) {
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  limit.rlim_cur = limit.rlim_max = 65536;
  ::setrlimit(RLIMIT_FSIZE, &limit);
  try {
    Hdf5Writer writer(path);
    for (int i = 0; i < 64; ++i) {
      const std::string name = "tensor" + std::to_string(i);
      writer.create(name, Dtype::kF32, {4096});
      writer.write_rows(name, 0, std::vector<std::byte>(4096 * 4));
    }
  } catch (const std::exception&) {
    std::exit(3);
  }
  std::exit(0);
}

TEST(Hdf5, AFileThatCannotBeClosedDoesNotCrashTheExit) {
  const TempFolder folder;
  EXPECT_EXIT(fill_the_disk(folder / "full.h5"), testing::ExitedWithCode(3), "");
}

TEST(Hdf5, WhatIsNotHdf5) {
  const TempFolder folder;
  write_text(folder / "a.h5", "hello");
  EXPECT_THROW(Hdf5Reader(folder / "a.h5"), CheckpointError);
  EXPECT_THROW(Hdf5Reader(folder / "absent.h5"), CheckpointError);
  EXPECT_THROW(Hdf5Writer(folder / "absent/a.h5"), Error);
}

class SealTest : public ::testing::Test {
 protected:
  std::string fault(const std::string& text) const {
    try {
      check_hdf5_seal(std::as_bytes(std::span(text)), "f.h5");
    } catch (const CheckpointError& error) {
      return error.what();
    }
    return {};
  }
  std::string sealed() {
    write_text(folder_ / "a", std::string(1000, 'x'));
    seal_hdf5(folder_ / "a", {{600, 100}, {100, 200}, {50, 0}}, "the table");
    return read_text(folder_ / "a");
  }
  TempFolder folder_;
};

TEST_F(SealTest, TellsTheTable) {
  const std::string text = sealed();
  const Hdf5Seal seal = check_hdf5_seal(std::as_bytes(std::span(text)), "f.h5");
  EXPECT_EQ(seal.table, "the table");
  EXPECT_EQ(seal.sealed_bytes, 1000u);
}

TEST_F(SealTest, EveryByteButTheDataIsCovered) {
  const std::string text = sealed();
  for (size_t i = 0; i < text.size(); ++i) {
    std::string bad = text;
    bad[i] ^= 1;
    const bool data = (i >= 100 && i < 300) || (i >= 600 && i < 700);
    EXPECT_EQ(fault(bad).empty(), data) << i;
  }
  for (size_t size = 0; size < text.size(); ++size) EXPECT_THAT(fault(text.substr(0, size)), HasSubstr("f.h5")) << size;
}

}  // namespace
}  // namespace cinch
