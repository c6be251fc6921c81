#include "checkpoints/formats/hdf5_container.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "checkpoints/layout.h"
#include "checkpoints/sink_ledger.h"
#include "core/errors.h"
#include "core/files.h"
#include "core/hdf5.h"
#include "core/hdf5_seal.h"
#include "core/json.h"

namespace cinch {
namespace {

constexpr const char* kDigestAttribute = "xxh3_128";
constexpr const char* kMetadataPrefix = "metadata.";
constexpr std::string_view kSignature("\x89HDF\r\n\x1a\n", 8);

/// What a file holds, as its seal tells: {"tensors": {name: {"dtype", "shape", "offset", "xxh3_128"}}, "metadata":
/// {key: text}}.
struct Table {
  std::vector<TensorInfo> tensors;
  std::vector<uint64_t> offsets;
  std::map<std::string, std::string> digests, metadata;
};

std::string render_table(const std::vector<TensorInfo>& tensors, const std::map<std::string, uint64_t>& offsets,
                         const std::map<std::string, std::string>& digests,
                         const std::map<std::string, std::string>& metadata) {
  Json table = {{"tensors", Json::object()}, {"metadata", Json::object()}};
  for (const TensorInfo& info : tensors) {
    table["tensors"][info.name] = {{"dtype", std::string(dtype_name(info.dtype))},
                                   {"shape", info.shape},
                                   {"offset", offsets.at(info.name)},
                                   {kDigestAttribute, digests.at(info.name)}};
  }
  for (const auto& [key, value] : metadata) table["metadata"][key] = value;
  return table.dump();
}

void check_overlaps(const Table& table, const std::string& file) {
  std::vector<std::pair<uint64_t, size_t>> order;
  for (size_t i = 0; i < table.tensors.size(); ++i) {
    if (table.tensors[i].bytes() > 0) order.emplace_back(table.offsets[i], i);
  }
  std::sort(order.begin(), order.end());
  for (size_t i = 1; i < order.size(); ++i) {
    const TensorInfo& before = table.tensors[order[i - 1].second];
    if (order[i - 1].first + before.bytes() > order[i].first) {
      throw CheckpointError(
          fmt::format("{}: tensors \"{}\" and \"{}\" overlap", file, before.name, table.tensors[order[i].second].name));
    }
  }
}

/// Checks every field against `data_bytes`, the length of the HDF5 file proper.
Table parse_table(std::string_view text, uint64_t data_bytes, const std::string& file) {
  const JsonObject json(parse_json(text, file), file);
  const JsonObject entries = json.object("tensors");
  Table table;
  for (const auto& [name, value] : entries.json().items()) {
    check_tensor_name(name, file);
    const JsonObject entry(value, file, name);
    const std::string where = fmt::format("{}: tensor \"{}\"", file, name);
    const std::string type = entry.string("dtype");
    const auto dtype = dtype_from_name(type);
    if (!dtype) throw CheckpointError(fmt::format("{}: unknown dtype \"{}\"", where, type));
    TensorInfo info{name, *dtype, entry.integers("shape"), ""};
    const uint64_t bytes = checked_bytes(info.shape, dtype_bits(*dtype), where);
    const int64_t offset = entry.integer("offset");
    if (offset < 0 || static_cast<uint64_t>(offset) > data_bytes ||
        bytes > data_bytes - static_cast<uint64_t>(offset)) {
      throw CheckpointError(fmt::format("{}: {} bytes at {} lie outside of the file", where, bytes, offset));
    }
    table.digests[name] = entry.string(kDigestAttribute);
    table.tensors.push_back(std::move(info));
    table.offsets.push_back(static_cast<uint64_t>(offset));
  }
  const JsonObject metadata = json.object("metadata");
  for (const auto& [key, value] : metadata.json().items()) table.metadata[key] = metadata.string(key);
  check_overlaps(table, file);
  return table;
}

class Hdf5Source : public TensorSource {
 public:
  explicit Hdf5Source(const std::filesystem::path& path) : map_(std::make_shared<MappedFile>(path)) {
    const Hdf5Seal seal = check_hdf5_seal(map_->bytes(), path);
    Table table = parse_table(seal.table, seal.sealed_bytes, path.string());
    tensors_ = std::move(table.tensors);
    offsets_ = std::move(table.offsets);
    digests_ = std::move(table.digests);
    metadata_ = std::move(table.metadata);
    build_index();
  }

  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  TensorData read(const std::string& name) const override {
    const TensorInfo& info = require_tensor(*this, name);
    return {info, bytes_of(info), map_};
  }
  TensorData read_rows(const std::string& name, int64_t begin, int64_t end) const override {
    const TensorInfo& info = require_tensor(*this, name);
    const ByteRange range = row_range(info, begin, end, map_->path().string());
    return {row_info(info, begin, end), bytes_of(info).subspan(range.offset, range.size), map_};
  }
  void release(const std::string& name) const override {
    if (const TensorInfo* info = find(name)) map_->release(bytes_of(*info));
  }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }
  std::vector<std::filesystem::path> files() const override { return {map_->path()}; }
  std::string format() const override { return "hdf5"; }
  std::string recorded_digest(const std::string& name) const override {
    const auto found = digests_.find(name);
    return found == digests_.end() ? "" : found->second;
  }

 private:
  std::span<const std::byte> bytes_of(const TensorInfo& info) const {
    return map_->bytes().subspan(offsets_[index_.at(info.name)], info.bytes());
  }

  std::shared_ptr<MappedFile> map_;
  std::vector<TensorInfo> tensors_;
  std::vector<uint64_t> offsets_;
  std::map<std::string, std::string> digests_;
  std::map<std::string, std::string> metadata_;
};

class Hdf5Sink : public TensorSink {
 public:
  explicit Hdf5Sink(const SinkOptions& options)
      : options_(options), file_(options.path), writer_(std::make_unique<Hdf5Writer>(file_.temporary_path())) {}

  void declare(const std::vector<TensorInfo>& tensors) override {
    check_text_metadata(options_.metadata, options_.path.string());
    ledger_.declare(tensors, options_.path.string());
    for (const auto& [key, value] : options_.metadata) writer_->set_attribute("", kMetadataPrefix + key, value);
    for (const TensorInfo& info : tensors) writer_->create(info.name, info.dtype, info.shape);
    // What libhdf5 and the seal add later: an attribute per tensor, object headers, the table.
    const uint64_t metadata_room = (uint64_t{1} << 20) + 1024 * tensors.size();
    file_.reserve(writer_->data_end() + metadata_room);
  }

  void write(const std::string& name, std::span<const std::byte> bytes) override {
    ledger_.accept(name, bytes);
    writer_->write_rows(name, 0, bytes);
    writer_->set_attribute(name, kDigestAttribute, ledger_.digests().at(name));
  }

  void commit() override {
    ledger_.check_complete();
    writer_->close();
    writer_.reset();
    std::vector<DataExtent> extents;
    std::map<std::string, uint64_t> offsets;
    for (const Hdf5Dataset& dataset : Hdf5Reader(file_.temporary_path()).datasets()) {
      extents.push_back({dataset.offset, dataset.bytes});
      offsets[dataset.name] = dataset.offset;
    }
    const std::string table = render_table(ledger_.tensors(), offsets, ledger_.digests(), options_.metadata);
    seal_hdf5(file_.temporary_path(), std::move(extents), table);
    file_.commit();
  }

  const std::map<std::string, std::string>& digests() const override { return ledger_.digests(); }

 private:
  SinkOptions options_;
  AtomicFile file_;
  std::unique_ptr<Hdf5Writer> writer_;  // works on the temporary name of file_, so it goes first
  SinkLedger ledger_;
};

class Hdf5Format : public CheckpointFormat {
 public:
  std::string name() const override { return "hdf5"; }

  bool recognises(const std::filesystem::path& path) const override {
    if (std::filesystem::is_directory(path)) return std::filesystem::exists(path / "model.h5");
    if (!std::filesystem::is_regular_file(path)) return false;
    const MappedFile file(path);
    return file.bytes().size() >= kSignature.size() &&
           std::memcmp(file.bytes().data(), kSignature.data(), kSignature.size()) == 0;
  }
  std::unique_ptr<TensorSource> open(const std::filesystem::path& path) const override {
    return std::make_unique<Hdf5Source>(std::filesystem::is_directory(path) ? path / "model.h5" : path);
  }
  std::unique_ptr<TensorSink> create(const SinkOptions& options) const override {
    return std::make_unique<Hdf5Sink>(options);
  }
  std::vector<Dtype> writable_dtypes() const override {
    return {Dtype::kBool,       Dtype::kU8,         Dtype::kI8,  Dtype::kU16,    Dtype::kI16,    Dtype::kU32,
            Dtype::kI32,        Dtype::kU64,        Dtype::kI64, Dtype::kF8E4M3, Dtype::kF8E5M2, Dtype::kF8E8M0,
            Dtype::kF8E4M3Fnuz, Dtype::kF8E5M2Fnuz, Dtype::kF16, Dtype::kBF16,   Dtype::kF32,    Dtype::kF64};
  }
};

}  // namespace

const CheckpointFormat& hdf5_format() {
  static const Hdf5Format format;
  return format;
}

}  // namespace cinch
