#include "checkpoints/formats/gguf.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "tests/checkpoints/helpers.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kU32 = 4, kString = 8, kArray = 9;

/// Magic, version, counts.
FileBuilder header(uint64_t tensors, uint64_t keys, uint32_t version = 3) {
  FileBuilder file;
  file.raw("GGUF").put(version).put(tensors).put(keys);
  return file;
}

FileBuilder& add_tensor(FileBuilder& file, std::string_view name, std::vector<uint64_t> sizes, uint32_t type,
                        uint64_t offset) {
  file.counted(name).put(static_cast<uint32_t>(sizes.size()));
  for (const uint64_t size : sizes) file.put(size);
  return file.put(type).put(offset);
}

/// A file of these tensors (each {name, sizes, type, offset}) with `data` bytes behind them.
struct Entry {
  std::string name;
  std::vector<uint64_t> sizes;
  uint32_t type = 0;
  uint64_t offset = 0;
};
std::string tensor_file(const std::vector<Entry>& entries, size_t data) {
  FileBuilder file = header(entries.size(), 0);
  for (const Entry& entry : entries) add_tensor(file, entry.name, entry.sizes, entry.type, entry.offset);
  return file.pad(32).text() + std::string(data, 'd');
}

std::string key_file(std::string_view key, uint32_t type, const std::string& value) {
  return header(0, 1).counted(key).put(type).raw(value).text();
}

std::string nested_arrays(int depth) {
  FileBuilder file;
  for (int i = 0; i < depth; ++i) file.put(kArray).put<uint64_t>(1);
  return file.put(kU32).put<uint64_t>(1).put<uint32_t>(7).text();
}

struct Hostile {
  std::string name, content, says;
};

class HostileGgufTest : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileGgufTest, IsRefusedWithFileAndRule) {
  const TempFolder folder;
  write_text(folder / "bad.gguf", GetParam().content);
  const std::string fault = fault_of([&] { GgufSource::open(folder / "bad.gguf"); });
  EXPECT_THAT(fault, HasSubstr("bad.gguf"));
  EXPECT_THAT(fault, HasSubstr(GetParam().says));
}

INSTANTIATE_TEST_SUITE_P(
    Files, HostileGgufTest,
    ::testing::Values(
        Hostile{"empty", "", "the magic needs 4 bytes"},
        Hostile{"wrong_magic", std::string(64, 'x'), "not a GGUF file"},
        Hostile{"version_1", header(0, 0, 1).text(), "version 1 is not 2 or 3"},
        Hostile{"big_endian", header(0, 0, 0x03000000).text(), "is not 2 or 3"},
        Hostile{"too_many_tensors", header(uint64_t{1} << 60, 0).text(), "more than the file can hold"},
        Hostile{"too_many_keys", header(0, uint64_t{1} << 60).text(), "more than the file can hold"},
        Hostile{"key_length", header(0, 1).put<uint64_t>(UINT64_MAX).put<uint32_t>(0).raw("xx").text(),
                "a metadata key needs"},
        Hostile{"key_not_utf8", key_file("\xff\xfe", kU32, "abcd"), "not valid UTF-8"},
        Hostile{"key_twice",
                header(0, 2).counted("k").put(kU32).put<uint32_t>(1).counted("k").put(kU32).put<uint32_t>(1).text(),
                "\"k\" is listed twice"},
        Hostile{"unknown_type", key_file("k", 13, "abcdefgh"), "\"k\": unknown metadata type 13"},
        Hostile{"string_length", key_file("k", kString, FileBuilder().put<uint64_t>(uint64_t{1} << 62).text()),
                "\"k\": a metadata value needs"},
        Hostile{"array_type", key_file("k", kArray, FileBuilder().put<uint32_t>(99).put<uint64_t>(0).text()),
                "unknown array type 99"},
        Hostile{"array_length", key_file("k", kArray, FileBuilder().put(kU32).put<uint64_t>(3).put<uint64_t>(0).text()),
                "claims 3 items, 8 bytes are left"},
        Hostile{"array_depth", key_file("k", kArray, nested_arrays(5)), "nest deeper than 4"},
        Hostile{"alignment_zero", key_file("general.alignment", kU32, FileBuilder().put<uint32_t>(0).text()),
                "general.alignment 0"},
        Hostile{"alignment_odd", key_file("general.alignment", kU32, FileBuilder().put<uint32_t>(12).text()),
                "general.alignment 12"},
        Hostile{"alignment_text", key_file("general.alignment", kString, FileBuilder().counted("32").text()),
                "not an integer"},
        Hostile{"name_not_utf8", tensor_file({{"\xff", {4}}}, 16), "not valid UTF-8"},
        Hostile{"name_empty", tensor_file({{"", {4}}}, 16), "empty name"},
        Hostile{"rank_5", tensor_file({{"a", {1, 1, 1, 1, 1}}}, 4), "\"a\": rank 5"},
        Hostile{"size_beyond_int64", tensor_file({{"a", {uint64_t{1} << 63}}}, 4), "overflows"},
        Hostile{"product_overflows", tensor_file({{"a", {uint64_t{1} << 40, uint64_t{1} << 40}}}, 4), "overflows"},
        Hostile{"f32_bytes_overflow", tensor_file({{"a", {uint64_t{1} << 62}}}, 4), "overflows"},
        Hostile{"dequantised_bytes_overflow", tensor_file({{"a", {uint64_t{1} << 61, 2}, 2}}, 4), "overflows"},
        Hostile{"foreign_type", tensor_file({{"a", {256}, 12}}, 144), "\"a\": stored as Q4_K"},
        Hostile{"unknown_tensor_type", tensor_file({{"a", {256}, 99}}, 144), "an unknown type"},
        Hostile{"broken_block", tensor_file({{"a", {48}, 8}}, 64), "do not fill Q8_0 blocks"},
        Hostile{"misaligned", tensor_file({{"a", {4}, 0, 8}}, 64), "not aligned to 32"},
        Hostile{"outside", tensor_file({{"a", {4}, 0, 64}}, 64), "outside of the file"},
        Hostile{"one_byte_short", tensor_file({{"a", {4}, 0, 0}}, 15), "outside of the file"},
        Hostile{"offset_overflow", tensor_file({{"a", {4}, 0, UINT64_MAX - 31}}, 64), "outside of the file"},
        Hostile{"overlap", tensor_file({{"a", {16}, 0, 0}, {"b", {4}, 0, 32}}, 64), "\"a\" and \"b\" overlap"},
        Hostile{"same_place", tensor_file({{"a", {4}, 0, 0}, {"b", {4}, 0, 0}}, 64), "overlap"},
        Hostile{"name_twice", tensor_file({{"a", {4}, 0, 0}, {"a", {4}, 0, 32}}, 64), "\"a\" is listed twice"}),
    [](const auto& test) { return test.param.name; });

TEST(Gguf, SmallFilesCannotAskForMuchMemory) {
  // 17 million items of one byte each would take 800 MB in memory.
  const TempFolder folder;
  const uint64_t count = (uint64_t{1} << 24) + 1;
  const std::string value = FileBuilder().put<uint32_t>(0).put(count).text() + std::string(count, '\0');
  write_text(folder / "big.gguf", key_file("k", kArray, value));
  EXPECT_THAT(fault_of([&] { GgufSource::open(folder / "big.gguf"); }), HasSubstr("more than 16777216 items"));
}

TEST(Gguf, ReadsWhatTheReferenceLibraryWrote) {
  const auto file = GgufSource::open(repo_file("tests/golden/checkpoints/python.gguf"));
  EXPECT_EQ(file->text("general.architecture"), "llama");
  EXPECT_EQ(file->integer("t.u8"), 200);
  EXPECT_EQ(file->integer("t.i8"), -100);
  EXPECT_EQ(file->integer("t.u16"), 60000);
  EXPECT_EQ(file->integer("t.i16"), -30000);
  EXPECT_EQ(file->integer("t.u32"), 4000000000);
  EXPECT_EQ(file->integer("t.i32"), -2000000000);
  EXPECT_EQ(std::get<uint64_t>(file->value("t.u64")->value), (uint64_t{1} << 63) + 5);
  EXPECT_EQ(file->integer("t.i64"), -(int64_t{1} << 62));
  EXPECT_EQ(file->number("t.f32"), 1.5);
  EXPECT_EQ(file->number("t.f64"), 1e300);
  EXPECT_EQ(file->boolean("t.bool"), true);
  EXPECT_EQ(file->text("t.string"), "Ġhello");
  EXPECT_THAT(file->texts("t.strings"), ElementsAre("a", "", "日本"));
  EXPECT_THAT(file->numbers("t.ints"), ElementsAre(1, -2, 3));
  EXPECT_THAT(file->numbers("t.floats"), ElementsAre(0.5, -1.0));
  EXPECT_FALSE(file->integer("absent").has_value());
  EXPECT_TRUE(file->texts("absent").empty());
  EXPECT_THROW(file->integer("t.string"), CheckpointError);
  EXPECT_THROW(file->text("t.u8"), CheckpointError);
  EXPECT_THROW(file->texts("t.ints"), CheckpointError);
  EXPECT_THROW(file->numbers("t.strings"), CheckpointError);
  EXPECT_THROW(file->boolean("t.u8"), CheckpointError);
  EXPECT_THROW(file->integer("t.u64"), CheckpointError);
}

TEST(Gguf, DequantisesLikeTheReferenceLibrary) {
  const auto file = open_tensors(repo_file("tests/golden/checkpoints/python.gguf"));
  const auto expected = open_tensors(repo_file("tests/golden/checkpoints/python_gguf_values.safetensors"));
  for (const std::string name : {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"}) {
    const TensorData data = file->read(name);
    EXPECT_EQ(data.info.dtype, expected->find(name)->dtype) << name;
    EXPECT_EQ(data.info.shape, (std::vector<int64_t>{3, 64})) << name;
    EXPECT_EQ(data.info.stored_as, name[0] == 'q' ? (name == "q8_0" ? "Q8_0" : name == "q4_0" ? "Q4_0" : "Q4_1") : "");
    EXPECT_EQ(copied(data.bytes), copied(expected->read(name).bytes)) << name;
    const TensorData rows = file->read_rows(name, 1, 3);
    EXPECT_EQ(copied(rows.bytes), copied(expected->read_rows(name, 1, 3).bytes)) << name;
  }
}

TEST(GgufSink, QuantisesLikeTheReferenceLibrary) {
  const TempFolder folder;
  const auto expected = open_tensors(repo_file("tests/golden/checkpoints/python_gguf_values.safetensors"));
  const auto sink = create_gguf_sink(folder / "q.gguf", {});
  sink->declare({{"q", Dtype::kF32, {3, 64}, "Q8_0"}});
  sink->write("q", expected->read("f32").bytes);
  sink->commit();
  const std::string file = read_text(folder / "q.gguf");
  const auto blocks = copied(expected->read("q8_0.blocks").bytes);
  const size_t padded = (blocks.size() + 31) / 32 * 32;
  const auto data = std::as_bytes(std::span(file)).subspan(file.size() - padded, blocks.size());
  EXPECT_EQ(copied(data), blocks);
  EXPECT_EQ(copied(open_tensors(folder / "q.gguf")->read("q").bytes), copied(expected->read("q8_0").bytes));
}

TEST(GgufSink, MetadataOfEveryTypeMakeTheRoundTrip) {
  const TempFolder folder;
  const GgufMetadata metadata = {{"u8", {GgufType::u8, uint64_t{255}}},
                                 {"i8", {GgufType::i8, int64_t{-128}}},
                                 {"u16", {GgufType::u16, uint64_t{65535}}},
                                 {"i16", {GgufType::i16, int64_t{-32768}}},
                                 {"u32", GgufValue::u32(UINT32_MAX)},
                                 {"i32", GgufValue::i32(INT32_MIN)},
                                 {"u64", {GgufType::u64, UINT64_MAX}},
                                 {"i64", {GgufType::i64, INT64_MIN}},
                                 {"f32", GgufValue::f32(0.1f)},
                                 {"f64", {GgufType::f64, 0.1}},
                                 {"true", GgufValue::boolean(true)},
                                 {"text", GgufValue::string("日本")},
                                 {"nested", GgufValue::array({GgufValue::array({GgufValue::u32(1), GgufValue::u32(2)}),
                                                              GgufValue::array({GgufValue::u32(3)})})},
                                 {"empty", GgufValue::array({})}};
  const auto sink = create_gguf_sink(folder / "m.gguf", metadata);
  sink->declare({});
  sink->commit();
  const auto file = GgufSource::open(folder / "m.gguf");
  ASSERT_EQ(file->gguf_metadata().size(), metadata.size());
  for (size_t i = 0; i < metadata.size(); ++i) {
    EXPECT_EQ(file->gguf_metadata()[i].first, metadata[i].first);
    EXPECT_EQ(file->gguf_metadata()[i].second.type, metadata[i].second.type);
    if (metadata[i].second.type == GgufType::array) continue;  // compared below
    EXPECT_EQ(file->gguf_metadata()[i].second.value, metadata[i].second.value) << metadata[i].first;
  }
  const auto& nested = std::get<std::vector<GgufValue>>(file->value("nested")->value);
  ASSERT_EQ(nested.size(), 2u);
  const auto& first = std::get<std::vector<GgufValue>>(nested[0].value);
  EXPECT_EQ(std::get<uint64_t>(first.at(1).value), 2u);
}

TEST(GgufSink, Version2IsReadLikeVersion3) {
  const TempFolder folder;
  FileBuilder file = header(1, 1, 2);
  file.counted("k").put(kString).counted("v");
  add_tensor(file, "a", {4, 1}, 0, 0).pad(32).raw(std::string(16, 'd'));
  write_text(folder / "v2.gguf", file.text());
  const auto source = GgufSource::open(folder / "v2.gguf");
  EXPECT_EQ(source->metadata().at("k"), "v");
  EXPECT_EQ(source->find("a")->shape, (std::vector<int64_t>{1, 4}));
}

TEST(GgufSink, FaultsAreNamed) {
  const TempFolder folder;
  const auto declare = [&](GgufMetadata metadata, std::vector<TensorInfo> infos) {
    return fault_of([&] { create_gguf_sink(folder / "x.gguf", std::move(metadata))->declare(infos); });
  };
  EXPECT_THAT(declare({{"k", GgufValue::u32(1)}, {"k", GgufValue::u32(2)}}, {}), HasSubstr("given twice"));
  EXPECT_THAT(declare({{"k", {GgufType::u32, std::string("x")}}}, {}), HasSubstr("not of its type"));
  EXPECT_THAT(declare({{"k", GgufValue::array({GgufValue::u32(1), GgufValue::string("x")})}}, {}),
              HasSubstr("share one type"));
  EXPECT_THAT(declare({{"general.alignment", GgufValue::u32(64)}}, {}), HasSubstr("aligns to 32"));
  EXPECT_THAT(declare({}, {{std::string(64, 'n'), Dtype::kF32, {1}, ""}}), HasSubstr("at most 63 bytes"));
  EXPECT_THAT(declare({}, {{"a", Dtype::kF32, {1, 1, 1, 1, 1}, ""}}), HasSubstr("at most 4 axes"));
  EXPECT_THAT(declare({}, {{"a", Dtype::kI64, {1}, ""}}), HasSubstr("no type I64"));
  EXPECT_THAT(declare({}, {{"a", Dtype::kF32, {48}, "Q8_0"}}), HasSubstr("multiple of 32"));
  EXPECT_THAT(declare({}, {{"a", Dtype::kF16, {32}, "Q8_0"}}), HasSubstr("f32 rows"));
  EXPECT_THAT(declare({}, {{"a", Dtype::kF32, {32}, "Q4_0"}}), HasSubstr("no type Q4_0"));
}

TEST(GgufSink, Q8HoldsFiniteNumbersOnly) {
  const TempFolder folder;
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> values(32, 1.0f);
    values[7] = bad;
    const auto sink = create_gguf_sink(folder / "x.gguf", {});
    sink->declare({{"a", Dtype::kF32, {32}, "Q8_0"}});
    EXPECT_THROW(sink->write("a", bytes_of(values)), UnsupportedError);
  }
}

TEST(Gguf, RealModel) {
  const auto path = asset("models/stories260K-gqa/stories260Ktok512.gguf");
  CINCH_NEEDS_ASSET(path);
  const auto source = GgufSource::open(path);
  for (const TensorInfo& info : source->tensors()) {
    EXPECT_EQ(source->read(info.name).bytes.size(), info.bytes());
    source->release(info.name);
  }
}

}  // namespace
}  // namespace cinch
