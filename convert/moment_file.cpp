#include "convert/moment_file.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "checkpoints/checkpoint_format.h"
#include "convert/partial_folder.h"
#include "core/digest.h"
#include "core/errors.h"
#include "model/model_source.h"

namespace cinch {
namespace {

constexpr const char* kMetadata = "cinch_moments";
constexpr int kVersion = 1;

/// Every number of a layer's moments under its name in the file.
std::vector<std::pair<std::string, at::Tensor*>> parts(LatentMoments& m) {
  return {{"joint", &m.joint}, {"joint_mean", &m.joint_mean}, {"first_rows", &m.first_rows},
          {"query", &m.query}, {"output", &m.output},         {"output_mean", &m.output_mean},
          {"lags", &m.lags}};
}

std::string dataset(int64_t layer, const std::string& part) { return fmt::format("layers.{}.{}", layer, part); }

std::vector<TensorInfo> datasets(const std::vector<int64_t>& layers, const std::vector<AttentionSpec>& specs,
                                 int64_t windows, int64_t length) {
  std::vector<TensorInfo> infos;
  for (const int64_t layer : layers) {
    const AttentionSpec& spec = specs.at(static_cast<size_t>(layer));
    const int64_t joint = 2 * spec.n_kv_heads * spec.head_dim, h = spec.n_heads, d = spec.head_dim;
    const auto add = [&](const char* part, std::vector<int64_t> shape) {
      infos.push_back({dataset(layer, part), Dtype::kF64, std::move(shape), {}});
    };
    add("joint", {joint, joint});
    add("joint_mean", {joint});
    add("first_rows", {windows, joint});
    add("query", {h, d, d});
    add("output", {h, d, d});
    add("output_mean", {h, d});
    add("lags", {h, length});
    add("energies", {2});
  }
  return infos;
}

}  // namespace

Json moment_identity(const Json& run_identity) {
  return {{"version", kVersion},
          {"source", run_identity.at("source").at("files")},
          {"calibration", run_identity.at("calibration")}};
}

MomentFile::MomentFile(const std::filesystem::path& path, const Json& identity) : path_(path) {
  const std::string help = "measure again with another file name for --statistics";
  source_ = checkpoint_format("hdf5").open(path);
  const auto found = source_->metadata().find(kMetadata);
  if (found == source_->metadata().end()) {
    throw UsageError(fmt::format("{} holds no statistics of a model", path.string()),
                     "--statistics takes a file that `cinch convert --statistics` wrote, or a new name");
  }
  identity_ = parse_json(found->second, path.string());
  Json compared = Json::object();
  for (const auto& [key, value] : identity.items()) {
    if (identity_.contains(key)) compared[key] = identity_[key];
  }
  const std::vector<std::string> differences = identity_differences(compared, identity);
  if (!differences.empty()) {
    throw UsageError(fmt::format("{}: measured differently: {}", path.string(), fmt::join(differences, "; ")), help);
  }
}

bool MomentFile::has_layer(int64_t layer) const { return source_->find(dataset(layer, "joint")) != nullptr; }

LatentMoments MomentFile::load(int64_t layer) const {
  const auto read = [&](const std::string& part) {
    const std::string name = dataset(layer, part);
    const TensorData data = source_->read(name);
    if (xxh3_hex(data.bytes) != source_->recorded_digest(name)) {
      throw CheckpointError(fmt::format("{}: dataset \"{}\" does not match its digest", path_.string(), name),
                            "the file is damaged: delete it, it will be measured again");
    }
    // Copied, so that the mapped pages can go.
    at::Tensor tensor = to_torch(data, at::kDouble).clone();
    source_->release(name);
    return tensor;
  };
  LatentMoments moments;
  for (const auto& [part, tensor] : parts(moments)) *tensor = read(part);
  const at::Tensor energies = read("energies");
  moments.output_energy = energies[0].item<double>();
  moments.residual_energy = energies[1].item<double>();
  moments.window = moments.lags.size(1);
  return moments;
}

MomentWriter::MomentWriter(const std::filesystem::path& path, const Json& identity, const std::vector<int64_t>& layers,
                           const std::vector<AttentionSpec>& specs, int64_t windows, int64_t length) {
  sink_ =
      checkpoint_format("hdf5").create({.path = path, .metadata = {{kMetadata, identity.dump()}}, .shard_bytes = 0});
  sink_->declare(datasets(layers, specs, windows, length));
}

void MomentWriter::store(int64_t layer, const LatentMoments& moments) {
  LatentMoments copy = moments;
  for (const auto& [part, tensor] : parts(copy)) sink_->write(dataset(layer, part), to_bytes(*tensor, Dtype::kF64));
  sink_->write(dataset(layer, "energies"),
               to_bytes(at::tensor({moments.output_energy, moments.residual_energy}, at::kDouble), Dtype::kF64));
}

void MomentWriter::commit() { sink_->commit(); }

uint64_t moment_bytes(const std::vector<int64_t>& layers, const std::vector<AttentionSpec>& specs, int64_t windows,
                      int64_t length) {
  uint64_t bytes = 0;
  for (const TensorInfo& info : datasets(layers, specs, windows, length)) bytes += info.bytes();
  return bytes;
}

}  // namespace cinch
