#include "checkpoints/formats/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>

#include "checkpoints/formats/gguf_blocks.h"
#include "checkpoints/layout.h"
#include "core/errors.h"
#include "core/files.h"

namespace cinch {
namespace {

constexpr int kMaxArrayDepth = 4;
constexpr uint64_t kMaxItems = uint64_t{1}
                               << 24;    // of all metadata arrays: bounds the memory that a small file can ask for
constexpr uint32_t kMagic = 0x46554747;  // "GGUF"

/// Reads little-endian values with a bounds check before each.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, std::string file) : bytes_(bytes), file_(std::move(file)) {}

  template <typename T>
  T take(const char* what) {
    T value{};
    std::memcpy(&value, view(sizeof(T), what).data(), sizeof(T));
    return value;
  }
  std::string take_string(const char* what) {
    const auto length = take<uint64_t>(what);
    const auto bytes = view(length, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  std::span<const std::byte> view(uint64_t size, const char* what) {
    if (size > bytes_.size() - position_) {
      fail(fmt::format("{} needs {} bytes at {}, {} are left (truncated?)", what, size, position_,
                       bytes_.size() - position_));
    }
    const auto result = bytes_.subspan(position_, size);
    position_ += size;
    return result;
  }
  /// Counts array items of the whole file.
  void take_items(uint64_t count) {
    items_ += count;
    if (count > kMaxItems || items_ > kMaxItems)
      fail(fmt::format("the metadata arrays have more than {} items", kMaxItems));
  }
  /// What is being read, for messages: a metadata key or nothing.
  void enter(std::string what) { inside_ = std::move(what); }
  [[noreturn]] void fail(const std::string& rule) const {
    throw CheckpointError(fmt::format("{}: {}{}{}", file_, inside_, inside_.empty() ? "" : ": ", rule));
  }
  uint64_t left() const { return bytes_.size() - position_; }
  uint64_t position() const { return position_; }
  const std::string& file() const { return file_; }

 private:
  std::span<const std::byte> bytes_;
  std::string file_, inside_;
  uint64_t position_ = 0, items_ = 0;
};

GgufValue take_value(Cursor& cursor, GgufType type, int depth);

/// The least bytes that a value of this type takes; 0 for unknown types.
uint64_t least_bytes(GgufType type) {
  static constexpr std::array<uint64_t, 13> kBytes = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
  const auto index = static_cast<size_t>(type);
  return index < kBytes.size() ? kBytes[index] : 0;
}

GgufValue take_array(Cursor& cursor, int depth) {
  if (depth >= kMaxArrayDepth) cursor.fail(fmt::format("arrays nest deeper than {}", kMaxArrayDepth));
  const auto item_type = static_cast<GgufType>(cursor.take<uint32_t>("an array type"));
  const auto count = cursor.take<uint64_t>("an array length");
  const uint64_t least = least_bytes(item_type);
  if (least == 0) cursor.fail(fmt::format("unknown array type {}", static_cast<uint32_t>(item_type)));
  if (count > cursor.left() / least) {
    cursor.fail(fmt::format("an array claims {} items, {} bytes are left (truncated?)", count, cursor.left()));
  }
  cursor.take_items(count);
  std::vector<GgufValue> items;
  items.reserve(count);
  for (uint64_t i = 0; i < count; ++i) items.push_back(take_value(cursor, item_type, depth + 1));
  return GgufValue::array(std::move(items));
}

GgufValue take_value(Cursor& cursor, GgufType type, int depth) {
  const char* what = "a metadata value";
  switch (type) {
    case GgufType::u8:
      return {type, uint64_t{cursor.take<uint8_t>(what)}};
    case GgufType::i8:
      return {type, int64_t{cursor.take<int8_t>(what)}};
    case GgufType::u16:
      return {type, uint64_t{cursor.take<uint16_t>(what)}};
    case GgufType::i16:
      return {type, int64_t{cursor.take<int16_t>(what)}};
    case GgufType::u32:
      return {type, uint64_t{cursor.take<uint32_t>(what)}};
    case GgufType::i32:
      return {type, int64_t{cursor.take<int32_t>(what)}};
    case GgufType::u64:
      return {type, cursor.take<uint64_t>(what)};
    case GgufType::i64:
      return {type, cursor.take<int64_t>(what)};
    case GgufType::f32:
      return {type, double{cursor.take<float>(what)}};
    case GgufType::f64:
      return {type, cursor.take<double>(what)};
    case GgufType::boolean:
      return {type, cursor.take<uint8_t>(what) != 0};
    case GgufType::string:
      return {type, cursor.take_string(what)};
    case GgufType::array:
      return take_array(cursor, depth);
  }
  cursor.fail(fmt::format("unknown metadata type {}", static_cast<uint32_t>(type)));
}

struct GgufEntry {
  TensorInfo info;
  GgufTensorType type;
  uint64_t offset = 0;  // in the file
  uint64_t bytes = 0;   // stored
};

Dtype plain_dtype(const GgufTensorType& type) {
  return type.name == "F16" ? Dtype::kF16 : type.name == "BF16" ? Dtype::kBF16 : Dtype::kF32;
}

GgufEntry take_tensor(Cursor& cursor) {
  GgufEntry entry;
  entry.info.name = cursor.take_string("a tensor name");
  check_tensor_name(entry.info.name, cursor.file());
  const std::string where = fmt::format("{}: tensor \"{}\"", cursor.file(), entry.info.name);
  const auto rank = cursor.take<uint32_t>("a tensor rank");
  if (rank > 4) throw CheckpointError(fmt::format("{}: rank {} is more than 4", where, rank));
  for (uint32_t axis = 0; axis < rank; ++axis) {
    const auto size = cursor.take<uint64_t>("a tensor size");
    if (size > static_cast<uint64_t>(INT64_MAX))
      throw CheckpointError(fmt::format("{}: the size {} overflows", where, size));
    entry.info.shape.insert(entry.info.shape.begin(), static_cast<int64_t>(size));  // ggml lists the fastest axis first
  }
  const auto type_id = cursor.take<uint32_t>("a tensor type");
  const auto type = gguf_tensor_type(type_id);
  if (!type) {
    throw CheckpointError(
        fmt::format("{}: stored as {}, which cinch does not read", where, gguf_foreign_type_name(type_id)),
        "F32, F16, BF16, Q8_0, Q4_0 and Q4_1 are read; requantise the file or take the original weights");
  }
  entry.type = *type;
  entry.info.dtype = plain_dtype(*type);
  if (type->block_values > 1) entry.info.stored_as = std::string(type->name);
  const uint64_t row = entry.info.shape.empty() ? 1 : static_cast<uint64_t>(entry.info.shape.back());
  if (row % static_cast<uint64_t>(type->block_values) != 0) {
    throw CheckpointError(fmt::format("{}: rows of {} do not fill {} blocks", where, row, type->name));
  }
  const uint64_t values = checked_bytes(entry.info.shape, 8, where);
  checked_bytes(entry.info.shape, 32, where);
  entry.bytes = checked_multiply(values / static_cast<uint64_t>(type->block_values),
                                 static_cast<uint64_t>(type->block_bytes), where);
  entry.offset = cursor.take<uint64_t>("a tensor offset");
  return entry;
}

class GgufFile : public GgufSource {
 public:
  explicit GgufFile(const std::filesystem::path& path) : map_(std::make_shared<MappedFile>(path)) {
    Cursor cursor(map_->bytes(), path.string());
    if (cursor.take<uint32_t>("the magic") != kMagic)
      throw CheckpointError(fmt::format("{}: not a GGUF file", path.string()));
    const auto version = cursor.take<uint32_t>("the version");
    if (version != 2 && version != 3)
      throw CheckpointError(fmt::format("{}: GGUF version {} is not 2 or 3", path.string(), version));
    const auto n_tensors = cursor.take<uint64_t>("the tensor count");
    const auto n_keys = cursor.take<uint64_t>("the key count");
    if (n_tensors > cursor.left() / 24 || n_keys > cursor.left() / 12) {
      throw CheckpointError(fmt::format("{}: the header claims {} tensors and {} keys, more than the file can hold",
                                        path.string(), n_tensors, n_keys));
    }
    take_metadata(cursor, n_keys);
    for (uint64_t i = 0; i < n_tensors; ++i) entries_.push_back(take_tensor(cursor));
    place_tensors(cursor);
    for (const GgufEntry& entry : entries_) tensors_.push_back(entry.info);
    build_index();
  }

  const GgufMetadata& gguf_metadata() const override { return metadata_values_; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }

  TensorData read(const std::string& name) const override {
    const TensorInfo& info = require_tensor(*this, name);
    return slice(info, 0, info.shape.empty() ? 1 : info.shape.front(), info);
  }
  TensorData read_rows(const std::string& name, int64_t begin, int64_t end) const override {
    const TensorInfo& info = require_tensor(*this, name);
    row_range(info, begin, end, map_->path().string());
    return slice(info, begin, end, row_info(info, begin, end));
  }
  void release(const std::string& name) const override {
    const auto found = index_.find(name);
    if (found == index_.end()) return;
    const GgufEntry& entry = entries_[found->second];
    map_->release(map_->bytes().subspan(entry.offset, entry.bytes));
  }
  const std::map<std::string, std::string>& metadata() const override { return text_metadata_; }
  std::vector<std::filesystem::path> files() const override { return {map_->path()}; }
  std::string format() const override { return "gguf"; }

 private:
  void take_metadata(Cursor& cursor, uint64_t count) {
    std::set<std::string> seen;
    for (uint64_t i = 0; i < count; ++i) {
      std::string key = cursor.take_string("a metadata key");
      if (!is_valid_utf8(key))
        throw CheckpointError(fmt::format("{}: a metadata key is not valid UTF-8", cursor.file()));
      if (!seen.insert(key).second)
        throw CheckpointError(fmt::format("{}: metadata key \"{}\" is listed twice", cursor.file(), key));
      const auto type = static_cast<GgufType>(cursor.take<uint32_t>("a metadata type"));
      cursor.enter(fmt::format("metadata key \"{}\"", key));
      GgufValue value = take_value(cursor, type, 0);
      cursor.enter("");
      if (const auto* text = std::get_if<std::string>(&value.value)) text_metadata_[key] = *text;
      metadata_values_.emplace_back(std::move(key), std::move(value));
    }
  }

  void place_tensors(const Cursor& cursor) {
    const uint64_t alignment = static_cast<uint64_t>(integer("general.alignment").value_or(32));
    if (alignment == 0 || alignment % 8 != 0 || alignment > 65536) {
      throw CheckpointError(
          fmt::format("{}: general.alignment {} is not a multiple of 8 up to 65536", cursor.file(), alignment));
    }
    const uint64_t data_begin = (cursor.position() + alignment - 1) / alignment * alignment;
    const uint64_t size = map_->bytes().size();
    std::vector<std::pair<uint64_t, const GgufEntry*>> order;
    for (GgufEntry& entry : entries_) {
      const std::string where = fmt::format("{}: tensor \"{}\"", cursor.file(), entry.info.name);
      if (entry.offset % alignment != 0)
        throw CheckpointError(fmt::format("{}: its offset {} is not aligned to {}", where, entry.offset, alignment));
      if (data_begin > size || entry.offset > size - data_begin || entry.bytes > size - data_begin - entry.offset) {
        throw CheckpointError(
            fmt::format("{}: {} bytes at {} lie outside of the file (truncated?)", where, entry.bytes, entry.offset));
      }
      entry.offset += data_begin;
      order.emplace_back(entry.offset, &entry);
    }
    std::sort(order.begin(), order.end());
    for (size_t i = 1; i < order.size(); ++i) {
      if (order[i - 1].first + order[i - 1].second->bytes > order[i].first) {
        throw CheckpointError(fmt::format("{}: tensors \"{}\" and \"{}\" overlap", cursor.file(),
                                          order[i - 1].second->info.name, order[i].second->info.name));
      }
    }
  }

  TensorData slice(const TensorInfo& info, int64_t begin, int64_t end, TensorInfo seen) const {
    const GgufEntry& entry = entries_[index_.at(info.name)];
    const int64_t rows = info.shape.empty() ? 1 : info.shape.front();
    const uint64_t row_bytes = rows == 0 ? 0 : entry.bytes / static_cast<uint64_t>(rows);
    if (info.shape.size() == 1 && entry.type.block_values > 1 && (begin != 0 || end != rows)) {
      throw CheckpointError(fmt::format("{}: tensor \"{}\": parts of a quantised vector cannot be read",
                                        map_->path().string(), info.name));
    }
    const auto stored = map_->bytes().subspan(entry.offset + row_bytes * static_cast<uint64_t>(begin),
                                              row_bytes * static_cast<uint64_t>(end - begin));
    if (entry.type.block_values == 1) return {std::move(seen), stored, map_};
    auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(seen.numel()));
    dequantize(entry.type, stored, *values);
    const auto bytes = std::as_bytes(std::span(*values));
    return {std::move(seen), bytes, std::move(values)};
  }

  std::shared_ptr<MappedFile> map_;
  GgufMetadata metadata_values_;
  std::map<std::string, std::string> text_metadata_;
  std::vector<GgufEntry> entries_;
  std::vector<TensorInfo> tensors_;
};

class GgufFormat : public CheckpointFormat {
 public:
  std::string name() const override { return "gguf"; }
  bool recognises(const std::filesystem::path& path) const override {
    if (!std::filesystem::is_regular_file(path)) return false;
    const MappedFile file(path);
    return file.bytes().size() >= 4 && std::memcmp(file.bytes().data(), "GGUF", 4) == 0;
  }
  std::unique_ptr<TensorSource> open(const std::filesystem::path& path) const override {
    return GgufSource::open(path);
  }
  std::unique_ptr<TensorSink> create(const SinkOptions& options) const override {
    GgufMetadata metadata;
    for (const auto& [key, value] : options.metadata) metadata.emplace_back(key, GgufValue::string(value));
    return create_gguf_sink(options.path, std::move(metadata));
  }
  std::vector<Dtype> writable_dtypes() const override { return {Dtype::kF32, Dtype::kF16, Dtype::kBF16}; }
};

}  // namespace

std::unique_ptr<GgufSource> GgufSource::open(const std::filesystem::path& path) {
  return std::make_unique<GgufFile>(path);
}

const GgufValue* GgufSource::value(const std::string& key) const {
  for (const auto& [name, value] : gguf_metadata()) {
    if (name == key) return &value;
  }
  return nullptr;
}

namespace {

[[noreturn]] void wrong_type(const GgufSource& source, const std::string& key, const char* wanted) {
  throw CheckpointError(fmt::format("{}: metadata key \"{}\" is not {}", source.files().front().string(), key, wanted));
}

double as_number(const GgufValue& value, const GgufSource& source, const std::string& key) {
  if (const auto* whole = std::get_if<uint64_t>(&value.value)) return static_cast<double>(*whole);
  if (const auto* whole = std::get_if<int64_t>(&value.value)) return static_cast<double>(*whole);
  if (const auto* real = std::get_if<double>(&value.value)) return *real;
  wrong_type(source, key, "a number");
}

}  // namespace

std::optional<int64_t> GgufSource::integer(const std::string& key) const {
  const GgufValue* found = value(key);
  if (found == nullptr) return std::nullopt;
  if (const auto* whole = std::get_if<uint64_t>(&found->value)) {
    if (*whole <= static_cast<uint64_t>(INT64_MAX)) return static_cast<int64_t>(*whole);
  }
  if (const auto* whole = std::get_if<int64_t>(&found->value)) return *whole;
  wrong_type(*this, key, "an integer");
}

std::optional<double> GgufSource::number(const std::string& key) const {
  const GgufValue* found = value(key);
  if (found == nullptr) return std::nullopt;
  return as_number(*found, *this, key);
}

std::optional<bool> GgufSource::boolean(const std::string& key) const {
  const GgufValue* found = value(key);
  if (found == nullptr) return std::nullopt;
  if (const auto* flag = std::get_if<bool>(&found->value)) return *flag;
  wrong_type(*this, key, "true or false");
}

std::optional<std::string> GgufSource::text(const std::string& key) const {
  const GgufValue* found = value(key);
  if (found == nullptr) return std::nullopt;
  if (const auto* text = std::get_if<std::string>(&found->value)) return *text;
  wrong_type(*this, key, "a string");
}

std::vector<std::string> GgufSource::texts(const std::string& key) const {
  const GgufValue* found = value(key);
  if (found == nullptr) return {};
  const auto* items = std::get_if<std::vector<GgufValue>>(&found->value);
  if (items == nullptr) wrong_type(*this, key, "a list");
  std::vector<std::string> result;
  for (const GgufValue& item : *items) {
    const auto* text = std::get_if<std::string>(&item.value);
    if (text == nullptr) wrong_type(*this, key, "a list of strings");
    result.push_back(*text);
  }
  return result;
}

std::vector<double> GgufSource::numbers(const std::string& key) const {
  const GgufValue* found = value(key);
  if (found == nullptr) return {};
  const auto* items = std::get_if<std::vector<GgufValue>>(&found->value);
  if (items == nullptr) wrong_type(*this, key, "a list");
  std::vector<double> result;
  for (const GgufValue& item : *items) result.push_back(as_number(item, *this, key));
  return result;
}

const CheckpointFormat& gguf_format() {
  static const GgufFormat format;
  return format;
}

}  // namespace cinch
