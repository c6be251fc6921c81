// GGUF v2 and v3: typed metadata, tensor table, aligned data. Source: ggml's docs/gguf.md; block layouts from
// ggml-common.h. Reads F32, F16, BF16 as they are and Q8_0, Q4_0, Q4_1 dequantised to F32; writes F32, F16, BF16, Q8_0.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "checkpoints/checkpoint_format.h"

namespace cinch {

/// Value types of the file, with the numbers of the specification.
enum class GgufType : uint32_t { u8 = 0, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

struct GgufValue {
  GgufType type = GgufType::u32;
  std::variant<uint64_t, int64_t, double, bool, std::string, std::vector<GgufValue>> value;

  bool operator==(const GgufValue&) const = default;

  static GgufValue u32(uint32_t number) { return {GgufType::u32, uint64_t{number}}; }
  static GgufValue i32(int32_t number) { return {GgufType::i32, int64_t{number}}; }
  static GgufValue f32(float number) { return {GgufType::f32, double{number}}; }
  static GgufValue boolean(bool flag) { return {GgufType::boolean, flag}; }
  static GgufValue string(std::string text) { return {GgufType::string, std::move(text)}; }
  static GgufValue array(std::vector<GgufValue> items) { return {GgufType::array, std::move(items)}; }
};

/// In file order.
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;

class GgufSource : public TensorSource {
 public:
  /// Parses header and tensor table; throws CheckpointError naming file, tensor and rule.
  static std::unique_ptr<GgufSource> open(const std::filesystem::path& path);

  virtual const GgufMetadata& gguf_metadata() const = 0;

  // Typed look-ups; nothing when the key is absent, CheckpointError when it has another type.
  const GgufValue* value(const std::string& key) const;
  std::optional<int64_t> integer(const std::string& key) const;
  std::optional<double> number(const std::string& key) const;
  std::optional<bool> boolean(const std::string& key) const;
  std::optional<std::string> text(const std::string& key) const;
  std::vector<std::string> texts(const std::string& key) const;
  std::vector<double> numbers(const std::string& key) const;
};

const CheckpointFormat& gguf_format();

/// TensorInfo.stored_as = "Q8_0" asks for quantisation of f32 bytes (rows must be multiples of 32).
std::unique_ptr<TensorSink> create_gguf_sink(const std::filesystem::path& path, GgufMetadata metadata);

}  // namespace cinch
