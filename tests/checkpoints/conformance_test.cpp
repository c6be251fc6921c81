// What every checkpoint format must do; iterates the list of formats.
#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

#include "checkpoints/checkpoint_format.h"
#include "core/digest.h"
#include "tests/checkpoints/helpers.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class FormatTest : public ::testing::TestWithParam<const CheckpointFormat*> {
 protected:
  const CheckpointFormat& format() const { return *GetParam(); }
  std::filesystem::path file() const { return folder_ / "tensors.bin"; }
  std::unique_ptr<TensorSink> sink() const { return format().create({.path = file()}); }

  /// Three f32 tensors: (9, 48), (6), (3, 2, 5).
  std::vector<TensorInfo> infos() const {
    return {{"wide", Dtype::kF32, {9, 48}, ""},
            {"short", Dtype::kF32, {6}, ""},
            {"deep.weight", Dtype::kF32, {3, 2, 5}, ""}};
  }
  void write_all() const {
    const auto target = sink();
    target->declare(infos());
    for (const TensorInfo& info : infos()) target->write(info.name, counting_bytes(info.bytes()));
    target->commit();
  }

  TempFolder folder_;
};

TEST_P(FormatTest, EveryDtypeMakesTheRoundTrip) {
  std::vector<TensorInfo> infos;
  for (const Dtype dtype : format().writable_dtypes()) {
    infos.push_back({std::string(dtype_name(dtype)) + ".weight", dtype, {3, 8}, ""});
    infos.push_back({std::string(dtype_name(dtype)) + ".odd", dtype, {1, 8, 5}, ""});
  }
  const auto target = sink();
  target->declare(infos);
  // Any order of writing is allowed.
  for (size_t i = infos.size(); i-- > 0;)
    target->write(infos[i].name, counting_bytes(infos[i].bytes(), static_cast<int>(i)));
  target->commit();

  const auto source = open_tensors(file());
  EXPECT_EQ(source->format(), format().name());
  ASSERT_EQ(source->tensors().size(), infos.size());
  for (size_t i = 0; i < infos.size(); ++i) {
    const TensorData data = source->read(infos[i].name);
    EXPECT_EQ(data.info.dtype, infos[i].dtype) << infos[i].name;
    EXPECT_EQ(data.info.shape, infos[i].shape) << infos[i].name;
    EXPECT_EQ(copied(data.bytes), counting_bytes(infos[i].bytes(), static_cast<int>(i))) << infos[i].name;
    const std::string recorded = source->recorded_digest(infos[i].name);
    if (format().name() == "hdf5") {
      EXPECT_EQ(recorded, xxh3_hex(data.bytes));
    } else {
      EXPECT_EQ(recorded, "");
    }
    EXPECT_EQ(target->digests().at(infos[i].name), xxh3_hex(data.bytes));
  }
}

TEST_P(FormatTest, RowsAreThoseOfTheWhole) {
  write_all();
  const auto source = open_tensors(file());
  for (const TensorInfo& info : infos()) {
    const TensorData whole = source->read(info.name);
    const uint64_t row = whole.bytes.size() / static_cast<uint64_t>(info.shape.front());
    for (int64_t begin = 0; begin <= info.shape.front(); ++begin) {
      const TensorData rows = source->read_rows(info.name, begin, info.shape.front());
      EXPECT_EQ(rows.info.shape.front(), info.shape.front() - begin);
      EXPECT_EQ(copied(rows.bytes), copied(whole.bytes.subspan(row * static_cast<uint64_t>(begin))));
    }
    EXPECT_THAT(fault_of([&] { source->read_rows(info.name, 1, info.shape.front() + 1); }), HasSubstr(info.name));
    EXPECT_THAT(fault_of([&] { source->read_rows(info.name, -1, 1); }), HasSubstr(info.name));
    EXPECT_THAT(fault_of([&] { source->read_rows(info.name, 2, 1); }), HasSubstr(info.name));
  }
}

TEST_P(FormatTest, TheSameTensorsGiveTheSameBytes) {
  const auto write = [&] {
    const auto target = sink();
    target->declare({{"a", Dtype::kBF16, {9, 3}, ""}, {"b", Dtype::kF32, {48}, ""}});
    target->write("b", counting_bytes(192));
    target->write("a", counting_bytes(54));
    target->commit();
    return read_text(file());
  };
  const std::string once = write();
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // time stamps count seconds
  EXPECT_TRUE(once == write());
}

TEST_P(FormatTest, ScalarsAndEmptyTensors) {
  const auto target = sink();
  target->declare({{"scalar", Dtype::kF32, {}, ""}, {"empty", Dtype::kF32, {0, 4}, ""}});
  target->write("scalar", counting_bytes(4));
  target->write("empty", {});
  target->commit();
  const auto source = open_tensors(file());
  EXPECT_EQ(copied(source->read("scalar").bytes), counting_bytes(4));
  EXPECT_TRUE(source->read("scalar").info.shape.empty());
  EXPECT_EQ(source->read("empty").bytes.size(), 0u);
  EXPECT_EQ(source->read_rows("empty", 0, 0).bytes.size(), 0u);
  EXPECT_EQ(source->read("empty").info.shape, (std::vector<int64_t>{0, 4}));
}

TEST_P(FormatTest, NoTensorsAtAll) {
  const auto target = sink();
  target->declare({});
  target->commit();
  EXPECT_TRUE(open_tensors(file())->tensors().empty());
}

TEST_P(FormatTest, DataOutliveTheSource) {
  write_all();
  TensorData data;
  {
    const auto source = open_tensors(file());
    data = source->read("wide");
    source->release("wide");
    source->release("absent");
  }
  EXPECT_EQ(copied(data.bytes), counting_bytes(data.info.bytes()));
}

TEST_P(FormatTest, ReadsFromSeveralThreads) {
  write_all();
  const auto source = open_tensors(file());
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        for (const TensorInfo& info : source->tensors()) {
          if (copied(source->read(info.name).bytes) != counting_bytes(info.bytes())) ++wrong;
          source->release(info.name);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(FormatTest, AMissingTensorIsNamedWithItsNeighbour) {
  write_all();
  const auto source = open_tensors(file());
  const std::string fault = fault_of([&] { source->read("deep.weigth"); });
  EXPECT_THAT(fault, HasSubstr("deep.weigth"));
  EXPECT_THAT(fault, HasSubstr("\"deep.weight\""));
  EXPECT_EQ(source->find("deep.weigth"), nullptr);
}

TEST_P(FormatTest, MetadataMakeTheRoundTrip) {
  const std::map<std::string, std::string> metadata = {
      {"general.name", "tiny"}, {"note", "grüße\n\"quoted\""}, {"long", std::string(100000, 'x')}, {"empty", ""}};
  const auto target = format().create({.path = file(), .metadata = metadata});
  target->declare(infos());
  for (const TensorInfo& info : infos()) target->write(info.name, counting_bytes(info.bytes()));
  target->commit();
  const auto source = open_tensors(file());
  for (const auto& [key, value] : metadata) EXPECT_EQ(source->metadata().at(key), value);
}

TEST_P(FormatTest, WithoutCommitNothingRemains) {
  {
    const auto target = sink();
    target->declare(infos());
    target->write("wide", counting_bytes(infos()[0].bytes()));
  }
  EXPECT_THAT(folder_.names(), IsEmpty());
}

TEST_P(FormatTest, TheOldFileStaysUntilCommit) {
  write_text(file(), "old");
  const auto target = sink();
  target->declare(infos());
  for (const TensorInfo& info : infos()) target->write(info.name, counting_bytes(info.bytes()));
  EXPECT_EQ(read_text(file()), "old");
  target->commit();
  EXPECT_EQ(open_tensors(file())->tensors().size(), 3u);
  EXPECT_THAT(folder_.names(), ElementsAre("tensors.bin"));
}

TEST_P(FormatTest, AKilledWriterLeavesTheOldFileAndTheNextOneCleansUp) {
  write_all();
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto target = sink();
    target->declare({{"other", Dtype::kF32, {4}, ""}});
    ::raise(SIGKILL);
  }
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(folder_.names().size(), 2u);
  EXPECT_EQ(open_tensors(file())->tensors().size(), 3u);
  write_all();
  EXPECT_THAT(folder_.names(), ElementsAre("tensors.bin"));
}

TEST_P(FormatTest, SinkFaultsAreNamed) {
  const auto target = sink();
  EXPECT_THROW(sink()->declare({infos()[0], infos()[0]}), UsageError);
  EXPECT_THROW(sink()->declare({{"", Dtype::kF32, {1}, ""}}), CheckpointError);
  EXPECT_THROW(sink()->declare({{"a\xff", Dtype::kF32, {1}, ""}}), CheckpointError);
  EXPECT_THROW(sink()->declare({{"a", Dtype::kF32, {-1}, ""}}), CheckpointError);
  EXPECT_THROW(sink()->declare({{"a", Dtype::kF32, {int64_t{1} << 40, int64_t{1} << 40}, ""}}), CheckpointError);
  target->declare(infos());
  EXPECT_THROW(target->write("absent", counting_bytes(4)), UsageError);
  EXPECT_THROW(target->write("short", counting_bytes(23)), ShapeError);
  target->write("short", counting_bytes(24));
  EXPECT_THROW(target->write("short", counting_bytes(24)), UsageError);
  const std::string fault = fault_of([&] { target->commit(); });
  EXPECT_THAT(fault, HasSubstr("\"wide\""));
  EXPECT_THAT(fault, HasSubstr("\"deep.weight\""));
  EXPECT_THROW(format().create({.path = file(), .metadata = {{"k", "\xff"}}})->declare({}), UsageError);
}

TEST_P(FormatTest, TruncationAnywhereIsFound) {
  write_all();
  const std::string whole = read_text(file());
  const size_t step = std::max<size_t>(1, whole.size() / 400);
  for (size_t size = 0; size < whole.size(); size += step) {
    write_text(folder_ / "cut", whole.substr(0, size));
    try {
      // A format may end in padding; a file that lacks some of it has lost nothing.
      const auto cut = format().open(folder_ / "cut");
      const auto source = format().open(file());
      EXPECT_EQ(cut->tensors().size(), source->tensors().size()) << size << " of " << whole.size() << " bytes";
      for (const TensorInfo& info : source->tensors()) {
        EXPECT_EQ(copied(cut->read(info.name).bytes), copied(source->read(info.name).bytes))
            << size << " " << info.name;
      }
      EXPECT_GT(size + 32, whole.size()) << "more than padding was cut";
    } catch (const Error&) {
    }
  }
}

TEST_P(FormatTest, AFlippedByteNeverDoesWorseThanAnError) {
  write_all();
  const std::string whole = read_text(file());
  const size_t step = std::max<size_t>(1, whole.size() / 600);
  for (size_t place = 0; place < whole.size(); place += step) {
    std::string damaged = whole;
    damaged[place] = static_cast<char>(damaged[place] ^ 0x5A);
    write_text(folder_ / "bad", damaged);
    try {
      const auto source = format().open(folder_ / "bad");
      for (const TensorInfo& info : source->tensors()) EXPECT_EQ(source->read(info.name).bytes.size(), info.bytes());
    } catch (const Error&) {
    }
  }
}

TEST_P(FormatTest, AReadOnlyTargetIsNamed) {
  const std::string fault =
      fault_of([&] { format().create({.path = folder_ / "absent/tensors.bin"})->declare(infos()); });
  EXPECT_THAT(fault, HasSubstr("absent/tensors.bin"));
}

INSTANTIATE_TEST_SUITE_P(All, FormatTest, ::testing::ValuesIn(checkpoint_formats()),
                         [](const auto& test) { return test.param->name(); });

}  // namespace
}  // namespace cinch
