#include "checkpoints/formats/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>

#include "checkpoints/formats/safetensors_sink.h"
#include "checkpoints/layout.h"
#include "core/errors.h"
#include "core/files.h"
#include "core/json.h"

static_assert(std::endian::native == std::endian::little, "tensor files are little-endian");

namespace cinch {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr const char* kIndexName = "model.safetensors.index.json";

struct Entry {
  TensorInfo info;
  uint64_t begin = 0, end = 0;
};

Entry parse_entry(const std::string& name, const JsonObject& fields, const std::string& file) {
  check_tensor_name(name, file);
  const std::string where = fmt::format("{}: tensor \"{}\"", file, name);
  Entry entry;
  entry.info.name = name;
  const std::string type = fields.string("dtype");
  const auto dtype = dtype_from_name(type);
  if (!dtype) throw CheckpointError(fmt::format("{}: unknown dtype \"{}\"", where, type));
  entry.info.dtype = *dtype;
  entry.info.shape = fields.integers("shape");
  const std::vector<int64_t> offsets = fields.integers("data_offsets");
  if (offsets.size() != 2 || offsets[0] < 0 || offsets[1] < offsets[0]) {
    throw CheckpointError(fmt::format("{}: data_offsets must be [begin, end] with 0 <= begin <= end", where));
  }
  entry.begin = static_cast<uint64_t>(offsets[0]);
  entry.end = static_cast<uint64_t>(offsets[1]);
  const uint64_t expected = checked_bytes(entry.info.shape, dtype_bits(*dtype), where);
  if (entry.end - entry.begin != expected) {
    throw CheckpointError(fmt::format("{}: shape and dtype need {} bytes, data_offsets give {}", where, expected,
                                      entry.end - entry.begin));
  }
  return entry;
}

/// The format allows neither overlaps nor gaps, and the last tensor must end where the file ends.
void check_coverage(const std::vector<Entry>& sorted, uint64_t data_bytes, const std::string& file) {
  uint64_t position = 0;
  for (const Entry& entry : sorted) {
    if (entry.begin != position) {
      throw CheckpointError(fmt::format("{}: tensor \"{}\": its data start at {} where {} is expected ({})", file,
                                        entry.info.name, entry.begin, position,
                                        entry.begin < position ? "overlap" : "gap"));
    }
    if (entry.end > data_bytes) {
      throw CheckpointError(
          fmt::format("{}: tensor \"{}\": its data end at {} but the file holds {} bytes of data (truncated?)", file,
                      entry.info.name, entry.end, data_bytes));
    }
    position = entry.end;
  }
  if (position != data_bytes) {
    throw CheckpointError(fmt::format("{}: {} bytes follow the last tensor", file, data_bytes - position));
  }
}

struct OpenFile {
  std::shared_ptr<MappedFile> map;
  uint64_t data_begin = 0;
  SafetensorsHeader header;
};

OpenFile open_file(const std::filesystem::path& path) {
  OpenFile file;
  file.map = std::make_shared<MappedFile>(path);
  const auto bytes = file.map->bytes();
  if (bytes.size() < 8) throw CheckpointError(fmt::format("{}: too short for a safetensors file", path.string()));
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - 8) {
    throw CheckpointError(fmt::format("{}: the header claims {} bytes, {} are left in the file", path.string(),
                                      header_bytes, bytes.size() - 8));
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + 8, header_bytes);
  file.data_begin = 8 + header_bytes;
  file.header = parse_safetensors_header(header, bytes.size() - file.data_begin, path.string());
  return file;
}

class SafetensorsSource : public TensorSource {
 public:
  explicit SafetensorsSource(std::vector<OpenFile> files) : files_(std::move(files)) {
    for (size_t f = 0; f < files_.size(); ++f) {
      const SafetensorsHeader& header = files_[f].header;
      for (size_t i = 0; i < header.tensors.size(); ++i) {
        tensors_.push_back(header.tensors[i]);
        places_.push_back({f, files_[f].data_begin + header.offsets[i]});
      }
      metadata_.insert(header.metadata.begin(), header.metadata.end());
    }
    build_index();
  }

  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  TensorData read(const std::string& name) const override {
    const TensorInfo& info = require_tensor(*this, name);
    return view(info, {0, info.bytes()}, info);
  }
  TensorData read_rows(const std::string& name, int64_t begin, int64_t end) const override {
    const TensorInfo& info = require_tensor(*this, name);
    return view(info, row_range(info, begin, end, files().front().string()), row_info(info, begin, end));
  }
  void release(const std::string& name) const override {
    const auto found = index_.find(name);
    if (found == index_.end()) return;
    const TensorInfo& info = tensors_[found->second];
    const Place& place = places_[found->second];
    const MappedFile& map = *files_[place.file].map;
    map.release(map.bytes().subspan(place.offset, info.bytes()));
  }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }
  std::vector<std::filesystem::path> files() const override {
    std::vector<std::filesystem::path> paths;
    for (const OpenFile& file : files_) paths.push_back(file.map->path());
    return paths;
  }
  std::string format() const override { return "safetensors"; }

 private:
  struct Place {
    size_t file;
    uint64_t offset;
  };

  TensorData view(const TensorInfo& info, ByteRange range, TensorInfo seen) const {
    const Place& place = places_[index_.at(info.name)];
    const auto& map = files_[place.file].map;
    return {std::move(seen), map->bytes().subspan(place.offset + range.offset, range.size), map};
  }

  std::vector<OpenFile> files_;
  std::vector<TensorInfo> tensors_;
  std::vector<Place> places_;
  std::map<std::string, std::string> metadata_;
};

std::vector<OpenFile> open_shards(const std::filesystem::path& index_path) {
  const JsonObject index = JsonObject::from_file(index_path);
  const JsonObject weight_map = index.object("weight_map");
  std::map<std::string, std::set<std::string>> wanted;  // shard -> tensors
  for (const auto& [tensor, shard] : weight_map.json().items()) {
    const std::string file = shard.is_string() ? shard.get<std::string>() : "";
    // A shard is a plain name beside the index: anything else could point outside of the model's folder.
    if (file.empty() || file.find('/') != std::string::npos || file == "..") {
      throw CheckpointError(
          fmt::format("{}: tensor \"{}\": \"{}\" is not a file name", index_path.string(), tensor, file));
    }
    wanted[file].insert(tensor);
  }
  if (wanted.empty()) throw CheckpointError(fmt::format("{}: weight_map is empty", index_path.string()));
  std::vector<OpenFile> files;
  for (const auto& [shard, tensors] : wanted) {
    const std::filesystem::path path = index_path.parent_path() / shard;
    if (!std::filesystem::exists(path)) {
      throw CheckpointError(fmt::format("{}: the shard {} that it names is missing", index_path.string(), shard),
                            "download the missing shard");
    }
    files.push_back(open_file(path));
    const auto& held = files.back().header.tensors;
    for (const std::string& tensor : tensors) {
      if (std::none_of(held.begin(), held.end(), [&](const TensorInfo& info) { return info.name == tensor; })) {
        throw CheckpointError(
            fmt::format("{}: tensor \"{}\" is not in {} where the index puts it", index_path.string(), tensor, shard));
      }
    }
  }
  return files;
}

/// A header length that fits, then the brace of a JSON object.
bool looks_like_safetensors(const std::filesystem::path& path) {
  if (!std::filesystem::is_regular_file(path)) return false;
  const MappedFile file(path);
  uint64_t header_bytes = 0;
  if (file.bytes().size() < 10) return false;
  std::memcpy(&header_bytes, file.bytes().data(), 8);
  return header_bytes >= 2 && header_bytes <= file.bytes().size() - 8 && file.bytes()[8] == std::byte{'{'};
}

class SafetensorsFormat : public CheckpointFormat {
 public:
  std::string name() const override { return "safetensors"; }

  bool recognises(const std::filesystem::path& path) const override {
    if (std::filesystem::is_directory(path)) {
      return std::filesystem::exists(path / kIndexName) || std::filesystem::exists(path / "model.safetensors");
    }
    // By name too: a damaged file that claims to be safetensors deserves the reader's own message.
    return path.extension() == ".safetensors" || path.filename() == kIndexName || looks_like_safetensors(path);
  }

  std::unique_ptr<TensorSource> open(const std::filesystem::path& path) const override {
    std::filesystem::path file = path;
    if (std::filesystem::is_directory(path)) {
      // As transformers chooses: the single file first.
      const std::filesystem::path single = path / "model.safetensors";
      file = std::filesystem::exists(single) ? single : path / kIndexName;
    }
    if (file.filename() == kIndexName) return std::make_unique<SafetensorsSource>(open_shards(file));
    std::vector<OpenFile> files;
    files.push_back(open_file(file));
    return std::make_unique<SafetensorsSource>(std::move(files));
  }

  std::unique_ptr<TensorSink> create(const SinkOptions& options) const override {
    return create_safetensors_sink(options);
  }

  std::vector<Dtype> writable_dtypes() const override {
    std::vector<Dtype> all;
    for (int i = 0; i <= static_cast<int>(Dtype::kC64); ++i) all.push_back(static_cast<Dtype>(i));
    return all;
  }
};

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view header, uint64_t data_bytes, const std::string& file) {
  const JsonObject object(parse_json(header, file), file);
  std::vector<Entry> entries;
  SafetensorsHeader result;
  for (const auto& [name, value] : object.json().items()) {
    if (name == "__metadata__") {
      const JsonObject metadata(value, file, name);
      for (const auto& [key, text] : metadata.json().items()) result.metadata[key] = metadata.string(key);
    } else {
      entries.push_back(parse_entry(name, JsonObject(value, file, name), file));
    }
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  check_coverage(entries, data_bytes, file);
  for (Entry& entry : entries) {
    result.tensors.push_back(std::move(entry.info));
    result.offsets.push_back(entry.begin);
  }
  return result;
}

const CheckpointFormat& safetensors_format() {
  static const SafetensorsFormat format;
  return format;
}

}  // namespace cinch
