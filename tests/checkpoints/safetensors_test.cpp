#include "checkpoints/formats/safetensors.h"

#include <gmock/gmock.h>

#include <bit>
#include <cmath>

#include "core/json.h"
#include "tests/checkpoints/helpers.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string file_with_header(const std::string& header, size_t data_bytes) {
  return FileBuilder().put<uint64_t>(header.size()).raw(header).raw(std::string(data_bytes, 'd')).text();
}

struct Hostile {
  std::string name, content, says;
};

class HostileSafetensorsTest : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileSafetensorsTest, IsRefusedWithFileAndRule) {
  const TempFolder folder;
  write_text(folder / "bad.safetensors", GetParam().content);
  const std::string fault = fault_of([&] { open_tensors(folder / "bad.safetensors"); });
  EXPECT_THAT(fault, HasSubstr("bad.safetensors"));
  EXPECT_THAT(fault, HasSubstr(GetParam().says));
}

Hostile hostile(const std::string& name, const std::string& header, size_t data, const std::string& says) {
  return {name, file_with_header(header, data), says};
}

constexpr const char* kGood = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";

INSTANTIATE_TEST_SUITE_P(
    Files, HostileSafetensorsTest,
    ::testing::Values(
        Hostile{"empty", "", "too short"}, Hostile{"seven_bytes", "1234567", "too short"},
        Hostile{"length_beyond_file", FileBuilder().put<uint64_t>(1000).raw("{}").text(),
                "claims 1000 bytes, 2 are left"},
        Hostile{"length_near_2_to_64", FileBuilder().put<uint64_t>(UINT64_MAX - 3).raw("{}").text(), "claims"},
        Hostile{"length_above_limit", FileBuilder().put<uint64_t>(200000000).raw("{}").text(), "claims"},
        hostile("no_json", "hello", 0, "not JSON"), hostile("list", "[]", 0, "expected an object"),
        hostile("deep", R"({"a":)" + std::string(100, '[') + std::string(100, ']') + "}", 0, "deeper than 64"),
        hostile(
            "duplicate",
            R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
            8, "\"a\" appears twice"),
        hostile("not_utf8", "{\"\xff\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "not JSON"),
        hostile("empty_name", R"({"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4, "empty name"),
        hostile("control_character", R"({"a\u0000b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4,
                "control character"),
        hostile("long_name", "{\"" + std::string(2000, 'n') + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                4, "2000 bytes"),
        hostile("no_dtype", R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4, "a.dtype"),
        hostile("unknown_dtype", R"({"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}})", 4, "unknown dtype \"Q4\""),
        hostile("negative_size", R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "negative"),
        hostile("size_beyond_int64", R"({"a":{"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]}})", 4,
                "2^63"),
        hostile("fractional_size", R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "a.shape"),
        hostile("product_overflows", R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
                "overflows"),
        hostile("product_overflows_before_zero",
                R"({"a":{"dtype":"F32","shape":[9223372036854775807,2,0],"data_offsets":[0,0]}})", 0, "overflows"),
        hostile("bits_overflow", R"({"a":{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0,
                "overflows"),
        hostile("half_a_byte", R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}})", 1, "whole bytes"),
        hostile("three_offsets", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4, "data_offsets"),
        hostile("backwards", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4, "data_offsets"),
        hostile("wrong_length", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4, "need 8 bytes"),
        hostile("beyond_the_data", kGood, 7, "truncated?"), hostile("trailing_data", kGood, 9, "1 bytes follow"),
        hostile("gap", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8, "gap"),
        hostile(
            "overlap",
            R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
            12, "overlap"),
        hostile(
            "same_place_twice",
            R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
            4, "overlap"),
        hostile("metadata_not_text", R"({"__metadata__":{"k":1}})", 0, "__metadata__.k"),
        hostile("metadata_list", R"({"__metadata__":[]})", 0, "__metadata__"),
        hostile("entry_is_text", R"({"a":"F32"})", 0, "a: expected an object")),
    [](const auto& test) { return test.param.name; });

TEST(Safetensors, ReadsWhatTheReferenceLibraryWrote) {
  const auto source = open_tensors(repo_file("tests/golden/checkpoints/python.safetensors"));
  EXPECT_EQ(source->tensors().size(), 11u);
  EXPECT_EQ(source->metadata().at("note"), "héllo");
  EXPECT_EQ(source->find("f8_e4m3")->dtype, Dtype::kF8E4M3);
  EXPECT_EQ(source->find("f8_e5m2")->dtype, Dtype::kF8E5M2);
  EXPECT_EQ(source->find("c64")->dtype, Dtype::kC64);
  EXPECT_EQ(values_of<int64_t>(source->read("i64").bytes), (std::vector<int64_t>{-3, -2, -1, 0, 1, 2, 3}));
  EXPECT_EQ(values_of<float>(source->read("scalar").bytes), (std::vector<float>{2.5f}));
  const auto single = values_of<float>(source->read("f32").bytes);
  const auto twice = values_of<double>(source->read("f64").bytes);
  const auto brain = values_of<uint16_t>(source->read("bf16").bytes);
  const auto complex = values_of<float>(source->read("c64").bytes);
  ASSERT_EQ(single.size(), 15u);
  for (size_t i = 0; i < single.size(); ++i) {
    EXPECT_EQ(twice[i], static_cast<double>(single[i]));
    EXPECT_EQ(complex[2 * i + 1], -single[i]);
    const float wide = std::bit_cast<float>(uint32_t{brain[i]} << 16);
    EXPECT_NEAR(wide, single[i], std::fabs(single[i]) / 128);
  }
}

class ShardTest : public ::testing::Test {
 protected:
  void write(uint64_t shard_bytes) {
    const auto sink = safetensors_format().create({.path = folder_.path(), .shard_bytes = shard_bytes});
    std::vector<TensorInfo> infos;
    for (int i = 0; i < 6; ++i) infos.push_back({"t" + std::to_string(i), Dtype::kF32, {5, 5}, ""});
    sink->declare(infos);
    for (int i = 0; i < 6; ++i) sink->write(infos[static_cast<size_t>(i)].name, counting_bytes(100, i));
    sink->commit();
  }
  TempFolder folder_;
};

TEST_F(ShardTest, ShardsAndTheirIndex) {
  write(250);
  EXPECT_THAT(folder_.names(), ElementsAre("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                                           "model-00003-of-00003.safetensors", "model.safetensors.index.json"));
  const auto source = open_tensors(folder_.path());
  EXPECT_EQ(source->files().size(), 3u);
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(copied(source->read("t" + std::to_string(i)).bytes), counting_bytes(100, i));
  }
  const JsonObject index = JsonObject::from_file(folder_ / "model.safetensors.index.json");
  EXPECT_EQ(index.object("metadata").integer("total_size"), 600);
  EXPECT_EQ(index.object("weight_map").string("t4"), "model-00003-of-00003.safetensors");
}

TEST_F(ShardTest, OneShardNeedsNoIndex) {
  write(10000);
  EXPECT_THAT(folder_.names(), ElementsAre("model.safetensors"));
  EXPECT_EQ(open_tensors(folder_.path())->tensors().size(), 6u);
}

TEST_F(ShardTest, WithoutCommitNoShardRemains) {
  {
    const auto sink = safetensors_format().create({.path = folder_.path(), .shard_bytes = 4});
    sink->declare({{"a", Dtype::kF32, {1}, ""}, {"b", Dtype::kF32, {1}, ""}});
    sink->write("a", counting_bytes(4));
  }
  EXPECT_TRUE(folder_.names().empty());
}

TEST_F(ShardTest, HostileIndexes) {
  write(250);
  const auto fault = [&](const std::string& text) {
    write_text(folder_ / "model.safetensors.index.json", text);
    return fault_of([&] { open_tensors(folder_.path()); });
  };
  EXPECT_THAT(fault(R"({"weight_map":{"t0":"../model-00001-of-00003.safetensors"}})"), HasSubstr("not a file name"));
  EXPECT_THAT(fault(R"({"weight_map":{"t0":"/etc/passwd"}})"), HasSubstr("not a file name"));
  EXPECT_THAT(fault(R"({"weight_map":{"t0":".."}})"), HasSubstr("not a file name"));
  EXPECT_THAT(fault(R"({"weight_map":{"t0":1}})"), HasSubstr("not a file name"));
  EXPECT_THAT(fault(R"({"weight_map":{}})"), HasSubstr("empty"));
  EXPECT_THAT(fault(R"({})"), HasSubstr("weight_map"));
  EXPECT_THAT(fault(R"({"weight_map":{"t0":"model-00009-of-00009.safetensors"}})"), HasSubstr("is missing"));
  EXPECT_THAT(fault(R"({"weight_map":{"t5":"model-00001-of-00003.safetensors"}})"), HasSubstr("\"t5\" is not in"));
  std::filesystem::copy_file(folder_ / "model-00001-of-00003.safetensors", folder_ / "again.safetensors");
  EXPECT_THAT(fault(R"({"weight_map":{"t0":"model-00001-of-00003.safetensors","t1":"again.safetensors"}})"),
              HasSubstr("listed twice"));
}

TEST(SafetensorsSink, TheHeaderIsWhatTransformersWants) {
  const TempFolder folder;
  const auto sink = safetensors_format().create({.path = folder / "m.safetensors"});
  sink->declare({{"bytes", Dtype::kU8, {3}, ""}, {"half", Dtype::kF16, {3}, ""}, {"double", Dtype::kF64, {1}, ""}});
  sink->write("bytes", counting_bytes(3));
  sink->write("half", counting_bytes(6));
  sink->write("double", counting_bytes(8));
  sink->commit();
  const std::string text = read_text(folder / "m.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, text.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  const Json header = parse_json(std::string_view(text).substr(8, length), "header");
  EXPECT_EQ(header["__metadata__"]["format"], "pt");
  // Wide elements first, so that each tensor is aligned to its element.
  EXPECT_EQ(header["double"]["data_offsets"], Json::array({0, 8}));
  EXPECT_EQ(header["half"]["data_offsets"], Json::array({8, 14}));
  EXPECT_EQ(header["bytes"]["data_offsets"], Json::array({14, 17}));
}

TEST(SafetensorsSink, TheKeyOfMetadataIsNoTensorName) {
  const TempFolder folder;
  const auto sink = safetensors_format().create({.path = folder / "m.safetensors"});
  EXPECT_THROW(sink->declare({{"__metadata__", Dtype::kU8, {1}, ""}}), UsageError);
}

}  // namespace
}  // namespace cinch
