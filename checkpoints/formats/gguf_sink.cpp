#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "checkpoints/formats/gguf.h"
#include "checkpoints/formats/gguf_blocks.h"
#include "checkpoints/layout.h"
#include "checkpoints/sink_ledger.h"
#include "core/errors.h"
#include "core/files.h"

namespace cinch {
namespace {

constexpr uint64_t kAlignment = 32;
constexpr uint32_t kVersion = 3;

uint64_t padded(uint64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

class HeaderWriter {
 public:
  template <typename T>
  void put(T value) {
    append(&value, sizeof(T));
  }
  void put_string(const std::string& text) {
    put(uint64_t{text.size()});
    append(text.data(), text.size());
  }
  void put_value(const GgufValue& value) {
    switch (value.type) {
      case GgufType::u8:
        return put(static_cast<uint8_t>(std::get<uint64_t>(value.value)));
      case GgufType::u16:
        return put(static_cast<uint16_t>(std::get<uint64_t>(value.value)));
      case GgufType::u32:
        return put(static_cast<uint32_t>(std::get<uint64_t>(value.value)));
      case GgufType::u64:
        return put(std::get<uint64_t>(value.value));
      case GgufType::i8:
        return put(static_cast<int8_t>(std::get<int64_t>(value.value)));
      case GgufType::i16:
        return put(static_cast<int16_t>(std::get<int64_t>(value.value)));
      case GgufType::i32:
        return put(static_cast<int32_t>(std::get<int64_t>(value.value)));
      case GgufType::i64:
        return put(std::get<int64_t>(value.value));
      case GgufType::f32:
        return put(static_cast<float>(std::get<double>(value.value)));
      case GgufType::f64:
        return put(std::get<double>(value.value));
      case GgufType::boolean:
        return put(static_cast<uint8_t>(std::get<bool>(value.value)));
      case GgufType::string:
        return put_string(std::get<std::string>(value.value));
      case GgufType::array:
        return put_array(std::get<std::vector<GgufValue>>(value.value));
    }
  }
  void pad() { bytes_.resize(padded(bytes_.size())); }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  void append(const void* from, size_t size) {
    if (size == 0) return;
    const size_t position = bytes_.size();
    bytes_.resize(position + size);
    std::memcpy(bytes_.data() + position, from, size);
  }
  void put_array(const std::vector<GgufValue>& items) {
    put(static_cast<uint32_t>(items.empty() ? GgufType::string : items.front().type));
    put(uint64_t{items.size()});
    for (const GgufValue& item : items) put_value(item);
  }
  std::vector<std::byte> bytes_;
};

/// The value is of its type, and every string in it is valid UTF-8.
bool holds(const GgufValue& value) {
  switch (value.type) {
    case GgufType::u8:
    case GgufType::u16:
    case GgufType::u32:
    case GgufType::u64:
      return std::holds_alternative<uint64_t>(value.value);
    case GgufType::i8:
    case GgufType::i16:
    case GgufType::i32:
    case GgufType::i64:
      return std::holds_alternative<int64_t>(value.value);
    case GgufType::f32:
    case GgufType::f64:
      return std::holds_alternative<double>(value.value);
    case GgufType::boolean:
      return std::holds_alternative<bool>(value.value);
    case GgufType::string: {
      const auto* text = std::get_if<std::string>(&value.value);
      return text != nullptr && is_valid_utf8(*text);
    }
    case GgufType::array: {
      const auto* items = std::get_if<std::vector<GgufValue>>(&value.value);
      return items != nullptr && std::all_of(items->begin(), items->end(), [&](const GgufValue& item) {
               return item.type == items->front().type && holds(item);
             });
    }
  }
  return false;
}

void check_metadata(const GgufMetadata& metadata, const std::string& file) {
  std::set<std::string> seen;
  for (const auto& [key, value] : metadata) {
    const std::string where = fmt::format("{}: metadata key \"{}\"", file, key);
    if (!is_valid_utf8(key) || key.empty()) throw UsageError(where + ": not a valid key");
    if (!seen.insert(key).second) throw UsageError(where + ": given twice");
    if (!holds(value))
      throw UsageError(where + ": the value is not of its type (items of a list share one type, strings are UTF-8)");
    const auto* number = std::get_if<uint64_t>(&value.value);
    if (key == "general.alignment" && (number == nullptr || *number != kAlignment)) {
      throw UsageError(fmt::format("{}: this writer aligns to {}", where, kAlignment));
    }
  }
}

/// The limits of ggml: GGML_MAX_NAME with its terminating zero, GGML_MAX_DIMS.
void check_ggml_limits(const TensorInfo& info) {
  if (info.name.size() > 63)
    throw UnsupportedError(fmt::format("tensor \"{}\": GGUF names have at most 63 bytes", info.name));
  if (info.shape.size() > 4)
    throw UnsupportedError(fmt::format("tensor \"{}\": GGUF tensors have at most 4 axes", info.name));
}

GgufTensorType stored_type(const TensorInfo& info) {
  const std::string name = info.stored_as.empty() ? std::string(dtype_name(info.dtype)) : info.stored_as;
  const auto type = gguf_tensor_type(name);
  if (!type || name.starts_with("Q4")) {
    throw UnsupportedError(fmt::format("tensor \"{}\": GGUF output has no type {}", info.name, name),
                           "F32, F16, BF16 and Q8_0 are written");
  }
  if (type->block_values > 1 &&
      (info.dtype != Dtype::kF32 || info.shape.empty() || info.shape.back() % type->block_values != 0)) {
    throw UnsupportedError(fmt::format("tensor \"{}\": {} needs f32 rows of a multiple of {} values", info.name, name,
                                       type->block_values));
  }
  return *type;
}

class GgufSink : public TensorSink {
 public:
  GgufSink(const std::filesystem::path& path, GgufMetadata metadata) : path_(path), metadata_(std::move(metadata)) {}

  void declare(const std::vector<TensorInfo>& tensors) override {
    check_metadata(metadata_, path_.string());
    ledger_.declare(tensors, path_.string());
    for (const TensorInfo& info : tensors) check_ggml_limits(info);
    HeaderWriter header;
    header.put(uint32_t{0x46554747});
    header.put(kVersion);
    header.put(uint64_t{tensors.size()});
    header.put(uint64_t{metadata_.size()});
    for (const auto& [key, value] : metadata_) {
      header.put_string(key);
      header.put(static_cast<uint32_t>(value.type));
      header.put_value(value);
    }
    uint64_t offset = 0;
    for (const TensorInfo& info : tensors) {
      const GgufTensorType type = stored_type(info);
      header.put_string(info.name);
      header.put(static_cast<uint32_t>(info.shape.size()));
      for (auto size = info.shape.rbegin(); size != info.shape.rend(); ++size) header.put(static_cast<uint64_t>(*size));
      header.put(type.id);
      header.put(offset);
      offsets_.push_back(offset);
      offset += padded(static_cast<uint64_t>(info.numel() / type.block_values * type.block_bytes));
    }
    header.pad();
    data_begin_ = header.bytes().size();
    file_ = std::make_unique<AtomicFile>(path_);
    file_->reserve(data_begin_ + offset);
    file_->write(header.bytes());
  }

  void write(const std::string& name, std::span<const std::byte> bytes) override {
    const size_t position = ledger_.accept(name, bytes);
    const GgufTensorType type = stored_type(ledger_.tensors()[position]);
    const uint64_t offset = data_begin_ + offsets_[position];
    if (type.block_values == 1) return write_padded(offset, bytes);
    const size_t count = bytes.size() / sizeof(float);
    std::vector<float> values(count);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    if (!std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) {
      throw UnsupportedError(fmt::format("tensor \"{}\": Q8_0 cannot hold infinities or NaN", name),
                             "write f16, bf16 or f32");
    }
    std::vector<std::byte> blocks(count / static_cast<size_t>(type.block_values) *
                                  static_cast<size_t>(type.block_bytes));
    quantize_q8_0(values, blocks);
    write_padded(offset, blocks);
  }

  void commit() override {
    ledger_.check_complete();
    file_->commit();
  }

  const std::map<std::string, std::string>& digests() const override { return ledger_.digests(); }

 private:
  /// A tensor's padding belongs to the file, that of the last one too.
  void write_padded(uint64_t offset, std::span<const std::byte> bytes) {
    file_->write_at(offset, bytes);
    const std::vector<std::byte> zeros(padded(bytes.size()) - bytes.size());
    file_->write_at(offset + bytes.size(), zeros);
  }

  std::filesystem::path path_;
  GgufMetadata metadata_;
  SinkLedger ledger_;
  std::vector<uint64_t> offsets_;
  uint64_t data_begin_ = 0;
  std::unique_ptr<AtomicFile> file_;
};

}  // namespace

std::unique_ptr<TensorSink> create_gguf_sink(const std::filesystem::path& path, GgufMetadata metadata) {
  return std::make_unique<GgufSink>(path, std::move(metadata));
}

}  // namespace cinch
