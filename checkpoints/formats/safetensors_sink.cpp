#include "checkpoints/formats/safetensors_sink.h"

#include <fmt/format.h>

#include <algorithm>

#include "checkpoints/layout.h"
#include "checkpoints/sink_ledger.h"
#include "core/errors.h"
#include "core/files.h"
#include "core/json.h"

namespace cinch {
namespace {

constexpr const char* kMetadataKey = "__metadata__";

class SafetensorsSink : public TensorSink {
 public:
  explicit SafetensorsSink(const SinkOptions& options) : options_(options) {
    options_.metadata.emplace("format", "pt");  // transformers refuses files without it
  }

  void declare(const std::vector<TensorInfo>& tensors) override {
    const std::string file = options_.path.string();
    check_text_metadata(options_.metadata, file);
    ledger_.declare(tensors, file);
    for (const TensorInfo& info : tensors) {
      if (info.name == kMetadataKey)
        throw UsageError(fmt::format("{}: a tensor cannot be named {}", file, kMetadataKey));
    }
    const std::vector<std::vector<size_t>> shards = split(tensors);
    places_.resize(tensors.size());
    for (size_t s = 0; s < shards.size(); ++s) start_shard(tensors, shards[s], s, shards.size());
  }

  void write(const std::string& name, std::span<const std::byte> bytes) override {
    const Place& place = places_[ledger_.accept(name, bytes)];
    files_[place.shard]->write_at(place.offset, bytes);
  }

  void commit() override {
    ledger_.check_complete();
    for (const auto& file : files_) file->flush();
    for (const auto& file : files_) file->commit();
    if (sharded()) write_index();
  }

  const std::map<std::string, std::string>& digests() const override { return ledger_.digests(); }

 private:
  struct Place {
    size_t shard = 0;
    uint64_t offset = 0;
  };

  bool sharded() const { return files_.size() > 1; }

  std::vector<std::vector<size_t>> split(const std::vector<TensorInfo>& tensors) const {
    std::vector<std::vector<size_t>> shards(1);
    uint64_t held = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const uint64_t bytes = tensors[i].bytes();
      if (options_.shard_bytes > 0 && held > 0 && held + bytes > options_.shard_bytes) {
        shards.emplace_back();
        held = 0;
      }
      shards.back().push_back(i);
      held += bytes;
    }
    // The format allows no gaps, so wide elements go first: then every tensor starts at a multiple of its element size.
    for (auto& shard : shards) {
      std::stable_sort(shard.begin(), shard.end(),
                       [&](size_t a, size_t b) { return dtype_bits(tensors[a].dtype) > dtype_bits(tensors[b].dtype); });
    }
    return shards;
  }

  std::filesystem::path shard_path(size_t shard, size_t count) const {
    if (options_.shard_bytes == 0) return options_.path;
    if (count == 1) return options_.path / "model.safetensors";
    return options_.path / fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, count);
  }

  void start_shard(const std::vector<TensorInfo>& tensors, const std::vector<size_t>& members, size_t shard,
                   size_t count) {
    Json header = Json::object();
    header[kMetadataKey] = options_.metadata;
    uint64_t offset = 0;
    for (const size_t i : members) {
      const TensorInfo& info = tensors[i];
      header[info.name] = {{"dtype", std::string(dtype_name(info.dtype))},
                           {"shape", info.shape},
                           {"data_offsets", {offset, offset + info.bytes()}}};
      places_[i] = {shard, offset};
      offset += info.bytes();
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');  // data aligned to 8 bytes
    const uint64_t length = text.size();
    const std::filesystem::path path = shard_path(shard, count);
    names_.push_back(path.filename().string());
    files_.push_back(std::make_unique<AtomicFile>(path));
    files_.back()->reserve(8 + length + offset);
    files_.back()->write(std::as_bytes(std::span(&length, 1)));
    files_.back()->write(text);
    for (const size_t i : members) places_[i].offset += 8 + length;
  }

  void write_index() const {
    Json index = {{"metadata", {{"total_size", uint64_t{0}}}}, {"weight_map", Json::object()}};
    uint64_t total = 0;
    for (size_t i = 0; i < ledger_.tensors().size(); ++i) {
      total += ledger_.tensors()[i].bytes();
      index["weight_map"][ledger_.tensors()[i].name] = names_[places_[i].shard];
    }
    index["metadata"]["total_size"] = total;
    write_text(options_.path / "model.safetensors.index.json", index.dump(2) + "\n");
  }

  SinkOptions options_;
  SinkLedger ledger_;
  std::vector<Place> places_;
  std::vector<std::unique_ptr<AtomicFile>> files_;
  std::vector<std::string> names_;
};

}  // namespace

std::unique_ptr<TensorSink> create_safetensors_sink(const SinkOptions& options) {
  return std::make_unique<SafetensorsSink>(options);
}

}  // namespace cinch
