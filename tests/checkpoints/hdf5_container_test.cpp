#include "checkpoints/formats/hdf5_container.h"

#include <gmock/gmock.h>

#include <cstdio>

#include "core/digest.h"
#include "core/hdf5.h"
#include "core/hdf5_seal.h"
#include "core/json.h"
#include "tests/checkpoints/helpers.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using ::testing::HasSubstr;

class Hdf5ContainerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto sink = hdf5_format().create({.path = file_, .metadata = {{"family", "llama"}}});
    const std::vector<TensorInfo> infos = {{"model.norm.weight", Dtype::kBF16, {9}, ""},
                                           {"model.embed.weight", Dtype::kF32, {48, 9}, ""},
                                           {"half", Dtype::kF16, {3, 3}, ""}};
    sink->declare(infos);
    for (const TensorInfo& info : infos) sink->write(info.name, counting_bytes(info.bytes()));
    sink->commit();
  }

  /// Writes the file again with this table under a seal that matches.
  std::string fault_of_table(const std::string& table) {
    const std::string whole = read_text(file_);
    const Hdf5Seal seal = check_hdf5_seal(std::as_bytes(std::span(whole)), file_);
    write_text(folder_ / "evil.h5", whole.substr(0, seal.sealed_bytes));
    seal_hdf5(folder_ / "evil.h5", {}, table);
    return fault_of([&] { hdf5_format().open(folder_ / "evil.h5"); });
  }

  TempFolder folder_;
  std::filesystem::path file_ = folder_ / "model.h5";
};

TEST_F(Hdf5ContainerTest, TheTableAgreesWithHdf5ItselfAndDataAreAligned) {
  const auto source = open_tensors(file_);
  const Hdf5Reader reader(file_);
  ASSERT_EQ(reader.datasets().size(), 3u);
  const MappedFile map(file_);
  for (const Hdf5Dataset& dataset : reader.datasets()) {
    EXPECT_EQ(dataset.offset % 4096, 0u) << dataset.name;
    const TensorData data = source->read(dataset.name);
    EXPECT_EQ(data.info.dtype, dataset.dtype);
    EXPECT_EQ(data.info.shape, dataset.shape);
    EXPECT_EQ(copied(data.bytes), copied(map.bytes().subspan(dataset.offset, dataset.bytes)));
    EXPECT_EQ(reader.text_attribute(dataset.name, "xxh3_128"), xxh3_hex(data.bytes));
    EXPECT_EQ(source->recorded_digest(dataset.name), xxh3_hex(data.bytes));
  }
  EXPECT_EQ(reader.text_attribute("", "metadata.family"), "llama");
}

TEST_F(Hdf5ContainerTest, H5dumpReadsIt) {
  if (std::system("command -v h5dump > /dev/null 2>&1") != 0) GTEST_SKIP() << "skipped: h5dump is not here";
  const std::string out = folder_ / "dump.txt";
  const std::string command = "h5dump '" + file_.string() + "' > '" + out + "' 2>&1";
  ASSERT_EQ(std::system(command.c_str()), 0) << read_text(out);
  const std::string text = read_text(out);
  EXPECT_THAT(text, HasSubstr("DATASET \"model.norm.weight\""));
  EXPECT_THAT(text, HasSubstr("\"/bfloat16\""));
  EXPECT_THAT(text, HasSubstr("( 48, 9 )")) << text.substr(0, 500);
}

TEST_F(Hdf5ContainerTest, DamagedMetadataAreFoundDamagedDataAreNotHidden) {
  const std::string whole = read_text(file_);
  std::string bad = whole;
  bad[9] ^= 1;  // in the superblock
  write_text(folder_ / "bad.h5", bad);
  EXPECT_THAT(fault_of([&] { hdf5_format().open(folder_ / "bad.h5"); }), HasSubstr("metadata are damaged"));

  const uint64_t data = Hdf5Reader(file_).datasets().front().offset;
  bad = whole;
  bad[data] ^= 1;
  write_text(folder_ / "bad.h5", bad);
  const auto source = hdf5_format().open(folder_ / "bad.h5");
  const std::string name = Hdf5Reader(file_).datasets().front().name;
  EXPECT_NE(source->recorded_digest(name), xxh3_hex(source->read(name).bytes));
}

TEST_F(Hdf5ContainerTest, ForeignHdf5IsRefusedWithTheWayOut) {
  {
    Hdf5Writer writer(folder_ / "foreign.h5");
    writer.create("a", Dtype::kF32, {2});
    writer.write_rows("a", 0, counting_bytes(8));
    writer.close();
  }
  EXPECT_THAT(fault_of([&] { open_tensors(folder_ / "foreign.h5"); }), HasSubstr("the seal is missing"));
}

TEST_F(Hdf5ContainerTest, AMatchingSealDoesNotExcuseAHostileTable) {
  const auto entry = [](const std::string& dtype, const std::string& shape, const std::string& offset) {
    return R"({"metadata":{},"tensors":{"a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"offset":)" + offset +
           R"(,"xxh3_128":""}}})";
  };
  EXPECT_EQ(fault_of_table(entry("F32", "[2]", "4096")), "");
  EXPECT_THAT(fault_of_table(entry("F32", "[2]", "99999999")), HasSubstr("outside of the file"));
  EXPECT_THAT(fault_of_table(entry("F32", "[2]", "-1")), HasSubstr("outside of the file"));
  EXPECT_THAT(fault_of_table(entry("F32", "[2]", "18446744073709551615")), HasSubstr("too large"));
  EXPECT_THAT(fault_of_table(entry("F32", "[4611686018427387904,4]", "0")), HasSubstr("overflows"));
  EXPECT_THAT(fault_of_table(entry("F32", "[1000000]", "0")), HasSubstr("outside of the file"));
  EXPECT_THAT(fault_of_table(entry("Q9", "[1]", "0")), HasSubstr("unknown dtype \"Q9\""));
  EXPECT_THAT(fault_of_table("hello"), HasSubstr("not JSON"));
  EXPECT_THAT(fault_of_table("{}"), HasSubstr("tensors"));
  EXPECT_THAT(fault_of_table(R"({"tensors":{}})"), HasSubstr("metadata"));
  EXPECT_THAT(fault_of_table(R"({"metadata":{},"tensors":{"a":{"dtype":"F32","shape":[4],"offset":0,"xxh3_128":""},)"
                             R"("b":{"dtype":"F32","shape":[4],"offset":12,"xxh3_128":""}}})"),
              HasSubstr("\"a\" and \"b\" overlap"));
  EXPECT_THAT(fault_of_table(R"({"metadata":{},"tensors":{"":{"dtype":"F32","shape":[1],"offset":0,"xxh3_128":""}}})"),
              HasSubstr("empty name"));
}

TEST(Hdf5Sink, NamesThatHdf5CannotHave) {
  const TempFolder folder;
  for (const std::string name : {"a/b", ".", "bfloat16", "cinch_type_BOOL"}) {
    const auto sink = hdf5_format().create({.path = folder / "x.h5"});
    EXPECT_THROW(sink->declare({{name, Dtype::kF32, {1}, ""}}), UnsupportedError) << name;
  }
  const auto sink = hdf5_format().create({.path = folder / "x.h5"});
  EXPECT_THROW(sink->declare({{"a", Dtype::kC64, {1}, ""}}), UnsupportedError);
}

TEST(Hdf5Sink, TenAxes) {
  const TempFolder folder;
  const auto sink = hdf5_format().create({.path = folder / "x.h5"});
  sink->declare({{"a", Dtype::kF32, std::vector<int64_t>(10, 2), ""}});
  sink->write("a", counting_bytes(4096));
  sink->commit();
  EXPECT_EQ(copied(open_tensors(folder / "x.h5")->read("a").bytes), counting_bytes(4096));
}

}  // namespace
}  // namespace cinch
