// The writer against ggml's description of the format: bytes are looked at here without the reader.
#include <gmock/gmock.h>

#include "checkpoints/formats/gguf.h"
#include "checkpoints/formats/gguf_blocks.h"
#include "tests/checkpoints/helpers.h"
#include "tests/support/assets.h"

namespace cinch {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// Reads little-endian values one after the other.
class Cursor {
 public:
  explicit Cursor(std::string_view text) : text_(text) {}
  template <typename T>
  T get() {
    T value{};
    EXPECT_LE(position_ + sizeof value, text_.size());
    std::memcpy(&value, text_.data() + position_, sizeof value);
    position_ += sizeof value;
    return value;
  }
  std::string string() {
    const auto length = get<uint64_t>();
    position_ += length;
    return std::string(text_.substr(position_ - length, length));
  }
  size_t position() const { return position_; }

 private:
  std::string_view text_;
  size_t position_ = 0;
};

size_t aligned(size_t size) { return (size + 31) / 32 * 32; }

/// Odd shapes: nine heads of three, and a head of 48; one tensor is quantised.
std::vector<TensorInfo> odd_tensors() {
  return {{"q.weight", Dtype::kF32, {27, 5}, ""},
          {"k.weight", Dtype::kF16, {2, 48}, ""},
          {"norm", Dtype::kBF16, {9}, ""},
          {"quantised", Dtype::kF32, {3, 96}, "Q8_0"}};
}

std::vector<std::byte> content(size_t i) {
  if (i < 3) return counting_bytes(odd_tensors()[i].bytes(), static_cast<int>(i));
  std::vector<float> values(3 * 96);
  for (size_t v = 0; v < values.size(); ++v) values[v] = static_cast<float>(v % 17) - 8;
  return copied(bytes_of(values));
}

void write_odd(const std::filesystem::path& file, const GgufMetadata& metadata) {
  const auto sink = create_gguf_sink(file, metadata);
  sink->declare(odd_tensors());
  for (size_t i = odd_tensors().size(); i-- > 0;) sink->write(odd_tensors()[i].name, content(i));
  sink->commit();
}

TEST(GgufSink, HeaderTableAndDataAreWhereTheFormatWantsThem) {
  const TempFolder folder;
  write_odd(folder / "m.gguf", {{"general.architecture", GgufValue::string("llama")}, {"n", GgufValue::u32(7)}});
  const std::string text = read_text(folder / "m.gguf");
  Cursor cursor(text);
  EXPECT_EQ(text.substr(0, 4), "GGUF");
  cursor.get<uint32_t>();
  EXPECT_EQ(cursor.get<uint32_t>(), 3u);
  EXPECT_EQ(cursor.get<uint64_t>(), 4u);  // tensors
  EXPECT_EQ(cursor.get<uint64_t>(), 2u);  // keys
  EXPECT_EQ(cursor.string(), "general.architecture");
  EXPECT_EQ(cursor.get<uint32_t>(), 8u);  // a string
  EXPECT_EQ(cursor.string(), "llama");
  EXPECT_EQ(cursor.string(), "n");
  EXPECT_EQ(cursor.get<uint32_t>(), 4u);  // u32
  EXPECT_EQ(cursor.get<uint32_t>(), 7u);

  const std::vector<uint32_t> types = {0, 1, 30, 8};  // F32, F16, BF16, Q8_0
  const std::vector<uint64_t> sizes = {27 * 5 * 4, 2 * 48 * 2, 9 * 2, 3 * 96 / 32 * 34};
  std::vector<uint64_t> offsets;
  uint64_t expected = 0;
  for (size_t i = 0; i < 4; ++i) {
    const TensorInfo info = odd_tensors()[i];
    EXPECT_EQ(cursor.string(), info.name);
    ASSERT_EQ(cursor.get<uint32_t>(), info.shape.size());
    for (size_t axis = info.shape.size(); axis-- > 0;) {  // fastest axis first
      EXPECT_EQ(cursor.get<uint64_t>(), static_cast<uint64_t>(info.shape[axis]));
    }
    EXPECT_EQ(cursor.get<uint32_t>(), types[i]) << info.name;
    offsets.push_back(cursor.get<uint64_t>());
    EXPECT_EQ(offsets.back(), expected) << info.name;
    expected += aligned(sizes[i]);
  }
  const size_t data = aligned(cursor.position());
  EXPECT_EQ(text.substr(cursor.position(), data - cursor.position()), std::string(data - cursor.position(), '\0'));
  ASSERT_EQ(text.size(), data + expected) << "the padding of the last tensor belongs to the file";
  const auto bytes = std::as_bytes(std::span(text));
  for (size_t i = 0; i < 4; ++i) {
    std::vector<std::byte> wanted = content(i);
    if (i == 3) {
      wanted.resize(sizes[3]);
      quantize_q8_0(values_of<float>(content(3)), wanted);
    }
    wanted.resize(aligned(sizes[i]));  // zeros between tensors
    EXPECT_EQ(copied(bytes.subspan(data + offsets[i], wanted.size())), wanted) << odd_tensors()[i].name;
  }
}

TEST(GgufSink, Q8IsNearWhatWasGiven) {
  const TempFolder folder;
  write_odd(folder / "m.gguf", {});
  const auto read = values_of<float>(open_tensors(folder / "m.gguf")->read("quantised").bytes);
  const auto given = values_of<float>(content(3));
  ASSERT_EQ(read.size(), given.size());
  // Half a step of max|x| / 127, and the rounding of the scale to a half.
  for (size_t i = 0; i < read.size(); ++i) EXPECT_NEAR(read[i], given[i], 8.0 / 127 * 0.5 + 8.0 / 2048);
}

TEST(GgufSink, TheDigestIsOfTheBytesThatWereGiven) {
  const TempFolder folder;
  const auto once = create_gguf_sink(folder / "a.gguf", {});
  once->declare({{"x", Dtype::kF32, {1, 32}, "Q8_0"}});
  const auto plain = create_gguf_sink(folder / "b.gguf", {});
  plain->declare({{"x", Dtype::kF32, {1, 32}, ""}});
  const std::vector<float> values(32, 0.25f);
  once->write("x", bytes_of(values));
  plain->write("x", bytes_of(values));
  EXPECT_EQ(once->digests(), plain->digests());
}

TEST(GgufSink, ARefusedTensorLeavesNoFile) {
  const TempFolder folder;
  {
    const auto sink = create_gguf_sink(folder / "m.gguf", {});
    EXPECT_THAT(fault_of([&] { sink->declare({{"w", Dtype::kF32, {3, 48}, "Q8_0"}}); }), HasSubstr("\"w\""));
  }
  EXPECT_THAT(folder.names(), IsEmpty());
  {
    const auto sink = create_gguf_sink(folder / "m.gguf", {});
    sink->declare(odd_tensors());
    sink->write("norm", content(2));
    EXPECT_THAT(fault_of([&] { sink->commit(); }), HasSubstr("3 declared tensors were not written"));
  }
  EXPECT_THAT(folder.names(), IsEmpty());
}

TEST(GgufSink, ScalarsAndEmptyTensorsTakeTheirPlace) {
  const TempFolder folder;
  const auto sink = create_gguf_sink(folder / "m.gguf", {});
  sink->declare({{"empty", Dtype::kF32, {0, 48}, ""}, {"one", Dtype::kF32, {1}, ""}});
  sink->write("empty", {});
  sink->write("one", counting_bytes(4));
  sink->commit();
  const auto source = open_tensors(folder / "m.gguf");
  EXPECT_EQ(source->read("empty").bytes.size(), 0u);
  EXPECT_EQ(copied(source->read("one").bytes), counting_bytes(4));
}

}  // namespace
}  // namespace cinch
