// The writer against the format's own description: bytes are looked at here without the reader.
#include "checkpoints/formats/safetensors_sink.h"

#include <gmock/gmock.h>

#include <algorithm>

#include "core/json.h"
#include "tests/checkpoints/helpers.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// Header and data of a file.
struct Parts {
  Json header;
  std::string data;
};
Parts parts_of(const std::filesystem::path& file) {
  const std::string text = read_text(file);
  uint64_t length = 0;
  EXPECT_GE(text.size(), 8u);
  std::memcpy(&length, text.data(), 8);
  EXPECT_EQ(length % 8, 0u);
  EXPECT_EQ(text[8], '{') << "the format forbids anything before the brace";
  return {parse_json(std::string_view(text).substr(8, length), "header"), text.substr(8 + length)};
}

void write_all(TensorSink& sink, const std::vector<TensorInfo>& infos) {
  sink.declare(infos);
  for (size_t i = infos.size(); i-- > 0;) {
    sink.write(infos[i].name, counting_bytes(infos[i].bytes(), static_cast<int>(i)));
  }
  sink.commit();
}

/// Odd shapes: nine heads of three, and a head of 48.
std::vector<TensorInfo> odd_tensors() {
  return {{"flags", Dtype::kU8, {9, 3}, ""}, {"q", Dtype::kBF16, {27, 5}, ""}, {"none", Dtype::kF32, {0, 48}, ""},
          {"k", Dtype::kF32, {1, 48}, ""},   {"wide", Dtype::kF64, {3}, ""},   {"scalar", Dtype::kF32, {}, ""}};
}

void expect_valid(const Parts& parts, const std::vector<TensorInfo>& infos) {
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (size_t i = 0; i < infos.size(); ++i) {
    const Json& entry = parts.header.at(infos[i].name);
    const auto begin = entry.at("data_offsets").at(0).get<uint64_t>(),
               end = entry.at("data_offsets").at(1).get<uint64_t>();
    EXPECT_EQ(entry.size(), 3u);
    EXPECT_EQ(entry.at("shape").get<std::vector<int64_t>>(), infos[i].shape);
    ASSERT_LE(begin, end);
    ASSERT_LE(end, parts.data.size());
    EXPECT_EQ(end - begin, infos[i].bytes());
    EXPECT_EQ(begin * 8 % static_cast<uint64_t>(dtype_bits(infos[i].dtype)), 0u)
        << infos[i].name << " is aligned to its elements";
    const auto bytes = std::as_bytes(std::span(parts.data)).subspan(begin, end - begin);
    EXPECT_EQ(copied(bytes), counting_bytes(infos[i].bytes(), static_cast<int>(i))) << infos[i].name;
    ranges.emplace_back(begin, end);
  }
  std::sort(ranges.begin(), ranges.end());
  uint64_t covered = 0;
  for (const auto& [begin, end] : ranges) {
    EXPECT_EQ(begin, covered) << "no gap, no overlap";
    covered = end;
  }
  EXPECT_EQ(covered, parts.data.size());
}

TEST(SafetensorsSink, OffsetsCoverTheDataWithoutGaps) {
  const TempFolder folder;
  const auto sink = create_safetensors_sink({.path = folder / "m.safetensors"});
  write_all(*sink, odd_tensors());
  const Parts parts = parts_of(folder / "m.safetensors");
  expect_valid(parts, odd_tensors());
  EXPECT_EQ(parts.header.size(), odd_tensors().size() + 1);
  EXPECT_EQ(parts.header["q"]["dtype"], "BF16");
}

TEST(SafetensorsSink, MetadataAreTextAndTheFormatStays) {
  const TempFolder folder;
  write_all(*create_safetensors_sink({.path = folder / "a", .metadata = {{"note", "größe"}}}), {});
  EXPECT_EQ(parts_of(folder / "a").header, Json::parse(R"({"__metadata__":{"format":"pt","note":"größe"}})"));
  write_all(*create_safetensors_sink({.path = folder / "b", .metadata = {{"format", "flax"}}}), {});
  EXPECT_EQ(parts_of(folder / "b").header["__metadata__"]["format"], "flax");
}

TEST(SafetensorsSink, AShardHoldsAtMostWhatIsAllowedUnlessOneTensorIsLarger) {
  const TempFolder folder;
  std::vector<TensorInfo> infos;
  for (const int64_t rows : {1, 2, 9, 3, 1, 4}) {  // of 20 bytes each
    infos.push_back({"t" + std::to_string(infos.size()), Dtype::kF32, {rows, 5}, ""});
  }
  write_all(*create_safetensors_sink({.path = folder.path(), .shard_bytes = 80}), infos);
  // 20 + 40 | 180, too large for any shard | 60 + 20 | 80
  const std::vector<std::vector<std::string>> expected = {{"t0", "t1"}, {"t2"}, {"t3", "t4"}, {"t5"}};
  const Json index = parse_json(read_text(folder / "model.safetensors.index.json"), "index");
  EXPECT_EQ(index["metadata"]["total_size"], 400);
  EXPECT_EQ(index["weight_map"].size(), 6u);
  for (size_t s = 0; s < expected.size(); ++s) {
    const std::string name = "model-0000" + std::to_string(s + 1) + "-of-00004.safetensors";
    const Parts parts = parts_of(folder / name);
    EXPECT_EQ(parts.header.size(), expected[s].size() + 1) << name;
    for (const std::string& tensor : expected[s]) {
      EXPECT_TRUE(parts.header.contains(tensor)) << name << " " << tensor;
      EXPECT_EQ(index["weight_map"][tensor], name);
    }
  }
  EXPECT_EQ(folder.names().size(), 5u);
}

TEST(SafetensorsSink, EmptyTensorsDoNotOpenShards) {
  const TempFolder folder;
  write_all(*create_safetensors_sink({.path = folder.path(), .shard_bytes = 4}),
            {{"a", Dtype::kF32, {0}, ""}, {"b", Dtype::kF32, {1}, ""}, {"c", Dtype::kF32, {0, 7}, ""}});
  EXPECT_THAT(folder.names(), ElementsAre("model.safetensors"));
}

TEST(SafetensorsSink, AnIncompleteCommitLeavesNothing) {
  const TempFolder folder;
  {
    const auto sink = create_safetensors_sink({.path = folder.path(), .shard_bytes = 4});
    sink->declare({{"a", Dtype::kF32, {1}, ""}, {"b", Dtype::kF32, {1}, ""}});
    sink->write("b", counting_bytes(4));
    EXPECT_THAT(fault_of([&] { sink->commit(); }), HasSubstr("\"a\""));
  }
  EXPECT_THAT(folder.names(), IsEmpty());
}

TEST(SafetensorsSink, TheSameTensorsGiveTheSameBytes) {
  const TempFolder folder;
  write_all(*create_safetensors_sink({.path = folder / "a"}), odd_tensors());
  const auto sink = create_safetensors_sink({.path = folder / "b"});
  sink->declare(odd_tensors());
  for (size_t i = 0; i < odd_tensors().size(); ++i) {  // in the other order
    sink->write(odd_tensors()[i].name, counting_bytes(odd_tensors()[i].bytes(), static_cast<int>(i)));
  }
  sink->commit();
  EXPECT_EQ(read_text(folder / "a"), read_text(folder / "b"));
}

}  // namespace
}  // namespace cinch
