#include "model/config_source.h"

#include <fmt/format.h>

#include "checkpoints/layout.h"
#include "core/errors.h"
#include "model/mixed_layers.h"
#include "model/model_writer.h"

namespace cinch {
namespace {

class PromisedTensors : public TensorSource {
 public:
  PromisedTensors(const std::filesystem::path& path, const std::vector<WeightSpec>& weights, Dtype dtype)
      : path_(path) {
    for (const WeightSpec& weight : weights) tensors_.push_back({weight.name, dtype, weight.shape, {}});
    build_index();
  }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  TensorData read(const std::string& name) const override {
    throw CheckpointError(fmt::format("{}: a config alone holds no tensor \"{}\"", path_.string(), name),
                          "name the folder that holds the weights");
  }
  TensorData read_rows(const std::string& name, int64_t, int64_t) const override { return read(name); }
  const std::map<std::string, std::string>& metadata() const override { return metadata_; }
  std::vector<std::filesystem::path> files() const override { return {}; }
  std::string format() const override { return "config"; }

 private:
  std::filesystem::path path_;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

class ConfigSource : public ModelSource {
 public:
  explicit ConfigSource(const std::filesystem::path& path) : path_(path) {
    const JsonObject json = stock_config(JsonObject::from_file(path));
    family_ = &family_of_config(json);
    config_ = family_->parse(json);
    // What transformers would take for float32 is, of a model worth planning for, a config that was shortened.
    if (!json.has("torch_dtype") && !json.has("dtype")) config_.dtype = "bfloat16";
    read_layer_list(json, config_);
    tensors_ = std::make_unique<PromisedTensors>(path, family_->weights(config_), output_dtype({}, config_));
  }
  const std::filesystem::path& path() const override { return path_; }
  const ModelConfig& config() const override { return config_; }
  const ModelFamily& family() const override { return *family_; }
  const TensorSource& tensors() const override { return *tensors_; }
  std::unique_ptr<Tokenizer> tokenizer() const override { return nullptr; }
  std::optional<GgufVocabulary> vocabulary() const override { return std::nullopt; }
  std::map<std::string, std::string> side_files() const override { return {}; }
  std::string quality_note() const override {
    return fmt::format("planned from a config alone, as {}; the weights were not looked at", config_.dtype);
  }

 private:
  std::filesystem::path path_;
  const ModelFamily* family_ = nullptr;
  ModelConfig config_;
  std::unique_ptr<PromisedTensors> tensors_;
};

}  // namespace

std::shared_ptr<ModelSource> open_config(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) throw ConfigError(fmt::format("{}: no such file", path.string()));
  return with_context(fmt::format("opening the config {}", path.string()),
                      [&] { return std::make_shared<ConfigSource>(path); });
}

}  // namespace cinch
