#include "eval/bench/random_model.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <map>

#include "core/errors.h"

namespace cinch {
namespace {

constexpr double kDeviation = 0.02;  // initializer_range of most families

class NoTensors : public TensorSource {
 public:
  explicit NoTensors(std::string name) : name_(std::move(name)) {}
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  TensorData read(const std::string& name) const override {
    throw CheckpointError(fmt::format("{} is a config alone: there is no tensor \"{}\"", name_, name),
                          "name the folder that holds the weights");
  }
  TensorData read_rows(const std::string& name, int64_t, int64_t) const override { return read(name); }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }
  std::vector<std::filesystem::path> files() const override { return {}; }
  std::string format() const override { return "config"; }

 private:
  std::string name_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

class ConfigModel : public ModelSource {
 public:
  ConfigModel(const std::string& name, ModelConfig config)
      : path_(name), config_(std::move(config)), family_(&model_family(config_.family)), tensors_(name) {}
  const std::filesystem::path& path() const override { return path_; }
  const ModelConfig& config() const override { return config_; }
  const ModelFamily& family() const override { return *family_; }
  const TensorSource& tensors() const override { return tensors_; }
  std::unique_ptr<Tokenizer> tokenizer() const override { return nullptr; }
  std::optional<GgufVocabulary> vocabulary() const override { return std::nullopt; }
  std::map<std::string, std::string> side_files() const override { return {}; }
  std::string quality_note() const override { return {}; }

 private:
  std::filesystem::path path_;
  ModelConfig config_;
  const ModelFamily* family_;
  NoTensors tensors_;
};

int64_t numbers_of(const WeightSpec& weight) {
  int64_t numbers = 1;
  for (const int64_t size : weight.shape) numbers *= size;
  return numbers;
}

}  // namespace

std::shared_ptr<ModelSource> config_model(std::string name, ModelConfig config) {
  return std::make_shared<ConfigModel>(name, std::move(config));
}

TensorReader random_reader(const ModelConfig& config, const ModelFamily& family, at::ScalarType dtype,
                           at::Device device) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const WeightSpec& weight : family.weights(config)) shapes[weight.name] = weight.shape;
  return [shapes = std::move(shapes), options = at::TensorOptions(dtype).device(device)](const std::string& name) {
    const auto found = shapes.find(name);
    if (found == shapes.end()) throw CheckpointError(fmt::format("the architecture has no tensor \"{}\"", name));
    const bool norm = found->second.size() == 1 && name.find("norm") != std::string::npos;
    if (norm) return at::ones(found->second, options);
    return at::empty(found->second, options).normal_(0, kDeviation);
  };
}

WeightBytes weight_bytes(const ModelConfig& config, const ModelFamily& family, int64_t element_bytes) {
  WeightBytes bytes;
  for (const WeightSpec& weight : family.weights(config)) {
    const int64_t size = numbers_of(weight) * element_bytes;
    bytes.all += size;
    if (weight.name != family.embedding_name() || config.tie_word_embeddings) bytes.read_per_step += size;
  }
  return bytes;
}

}  // namespace cinch
