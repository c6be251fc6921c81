#include "model/model_source.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <array>

#include "checkpoints/checkpoint_format.h"
#include "checkpoints/layout.h"
#include "checkpoints/tensor_view.h"
#include "core/errors.h"
#include "core/files.h"
#include "model/gguf/gguf_layout.h"
#include "model/gguf/gguf_mapping.h"
#include "model/mixed_layers.h"

namespace cinch {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) { return fmt::format("({})", fmt::join(shape, ", ")); }

/// All missing and mis-shaped tensors at once.
void check_weights(const TensorSource& tensors, const std::vector<WeightSpec>& weights,
                   const std::filesystem::path& path) {
  constexpr size_t kShown = 50;
  std::vector<std::string> faults;
  for (const WeightSpec& weight : weights) {
    const TensorInfo* info = tensors.find(weight.name);
    if (info == nullptr) {
      faults.push_back(fmt::format("\"{}\" is missing", weight.name));
    } else if (info->shape != weight.shape) {
      faults.push_back(fmt::format("\"{}\" is {}, config.json promises {}", weight.name, shape_text(info->shape),
                                   shape_text(weight.shape)));
    } else if (!is_weight_dtype(info->dtype)) {
      faults.push_back(
          fmt::format("\"{}\" has the type {}, which is no weight type", weight.name, dtype_name(info->dtype)));
    }
  }
  if (faults.empty()) return;
  const size_t count = faults.size();
  if (count > kShown) faults.resize(kShown);
  throw CheckpointError(fmt::format("{}: {} tensors do not fit the config: {}{}", path.string(), count,
                                    fmt::join(faults, "; "), count > kShown ? "; ..." : ""));
}

class FolderSource : public ModelSource {
 public:
  explicit FolderSource(const std::filesystem::path& path) : path_(path) {
    const std::filesystem::path config_path = path / "config.json";
    if (!std::filesystem::exists(config_path)) {
      throw ConfigError(fmt::format("{}: there is no config.json", path.string()),
                        "a model is a Hugging Face folder, a cinch folder or a .gguf file");
    }
    const JsonObject json = stock_config(JsonObject::from_file(config_path));
    family_ = &family_of_config(json);
    config_ = family_->parse(json);
    read_layer_list(json, config_);
    tensors_ = open_tensors(path);
    // A checkpoint may leave the tie out of config.json.
    if (!json.has("tie_word_embeddings") && tensors_->find(family_->head_name()) == nullptr)
      config_.tie_word_embeddings = true;
    check_weights(*tensors_, family_->weights(config_), path);
  }

  const std::filesystem::path& path() const override { return path_; }
  const ModelConfig& config() const override { return config_; }
  const ModelFamily& family() const override { return *family_; }
  const TensorSource& tensors() const override { return *tensors_; }
  std::unique_ptr<Tokenizer> tokenizer() const override { return load_tokenizer(path_); }
  std::optional<GgufVocabulary> vocabulary() const override {
    if (!std::filesystem::exists(path_ / "tokenizer.json") && !std::filesystem::exists(path_ / "tokenizer.model"))
      return std::nullopt;
    return gguf_vocabulary(path_);
  }
  std::map<std::string, std::string> side_files() const override {
    static constexpr std::array kCarried = {
        "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json",     "merges.txt",      "chat_template.jinja",   "generation_config.json",  "LICENSE",
        "LICENSE.txt",    "NOTICE"};
    std::map<std::string, std::string> files;
    for (const char* name : kCarried) {
      if (std::filesystem::exists(path_ / name)) files[name] = read_text(path_ / name);
    }
    return files;
  }
  std::string quality_note() const override { return ""; }

 private:
  std::filesystem::path path_;
  const ModelFamily* family_ = nullptr;
  ModelConfig config_;
  std::unique_ptr<TensorSource> tensors_;
};

/// A GGUF file seen under Hugging Face names and layouts.
class RenamedTensors : public TensorView {
 public:
  RenamedTensors(const GgufSource& inner, const ModelConfig& config, const std::vector<WeightSpec>& weights)
      : TensorView(inner), config_(config) {
    std::map<std::string, const WeightSpec*> wanted;
    for (const WeightSpec& weight : weights) wanted[weight.name] = &weight;
    for (const TensorInfo& info : inner.tensors()) {
      const auto name = gguf_to_hf_name(info.name, config.family);
      if (!name || stored_.contains(*name)) continue;
      const auto weight = wanted.find(*name);
      TensorInfo renamed = info;
      renamed.name = *name;
      std::vector<std::string> parts = {info.name};
      if (weight != wanted.end()) place(*weight->second, renamed, parts);
      tensors_.push_back(std::move(renamed));
      stored_[*name] = std::move(parts);
    }
    build_index();
  }

  TensorData read(const std::string& name) const override {
    const TensorInfo& info = require_tensor(*this, name);
    const std::vector<std::string>& stored = stored_.at(name);
    TensorData data = inner_.read(stored.front());
    if (changes(info)) {
      std::vector<at::Tensor> parts;
      for (const std::string& part : stored) {
        const TensorData found = inner_.read(part);
        parts.push_back(to_torch(found, torch_dtype(found.info.dtype)));
      }
      const at::Tensor whole = GgufPlacement(config_, name, info.shape).from_parts(parts);
      const auto bytes = std::make_shared<std::vector<std::byte>>(to_bytes(whole, info.dtype));
      return {info, *bytes, bytes};
    }
    data.info = info;
    return data;
  }
  TensorData read_rows(const std::string& name, int64_t begin, int64_t end) const override {
    const TensorInfo& info = require_tensor(*this, name);
    if (changes(info)) return TensorView::read_rows(name, begin, end);
    TensorData data = inner_.read_rows(stored_.at(name).front(), begin, end);
    data.info = row_info(info, begin, end);
    return data;
  }
  void release(const std::string& name) const override {
    const auto found = stored_.find(name);
    if (found == stored_.end()) return;
    for (const std::string& part : found->second) inner_.release(part);
  }

 private:
  /// Where all parts of a tensor are there in their shapes, `renamed` gets the whole's; else it keeps that of the
  /// first, which the check of weights will not accept.
  void place(const WeightSpec& weight, TensorInfo& renamed, std::vector<std::string>& parts) const {
    const GgufPlacement placement(config_, weight.name, weight.shape);
    if (placement.parts().size() < 2) return;
    std::vector<std::string> names;
    for (const GgufPart& part : placement.parts()) {
      const TensorInfo* found = inner_.find(part.name);
      if (found == nullptr || found->shape != part.shape) return;
      if (found->dtype != renamed.dtype) renamed.dtype = Dtype::kF32;
      names.push_back(part.name);
    }
    renamed.shape = weight.shape;
    parts = std::move(names);
  }

  /// A tensor that is whole in a file where others are in parts (old deepseek2 files) is as Hugging Face has it.
  bool changes(const TensorInfo& info) const {
    const GgufPlacement placement(config_, info.name, info.shape);
    return placement.changes() && placement.parts().size() == stored_.at(info.name).size();
  }

  const ModelConfig& config_;
  std::map<std::string, std::vector<std::string>> stored_;
};

class GgufModelSource : public ModelSource {
 public:
  explicit GgufModelSource(const std::filesystem::path& path) : path_(path), file_(GgufSource::open(path)) {
    const JsonObject json(gguf_to_config(*file_), path.string());
    family_ = &family_of_config(json);
    config_ = family_->parse(json);
    const std::vector<WeightSpec> weights = family_->weights(config_);
    tensors_ = std::make_unique<RenamedTensors>(*file_, config_, weights);
    check_weights(*tensors_, weights, path);
    for (const TensorInfo& info : file_->tensors()) {
      if (!info.stored_as.empty() && info.shape.size() > 1) stored_as_ = info.stored_as;
    }
  }

  const std::filesystem::path& path() const override { return path_; }
  const ModelConfig& config() const override { return config_; }
  const ModelFamily& family() const override { return *family_; }
  const TensorSource& tensors() const override { return *tensors_; }
  std::unique_ptr<Tokenizer> tokenizer() const override {
    const auto known = vocabulary();
    return known ? make_gguf_tokenizer(*known) : nullptr;
  }
  std::optional<GgufVocabulary> vocabulary() const override {
    GgufVocabulary known = read_gguf_vocabulary(*file_);
    if (known.tokens.empty() || known.model == "none") return std::nullopt;
    return known;
  }
  std::map<std::string, std::string> side_files() const override {
    const auto known = vocabulary();
    if (!known) return {};
    Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
    const auto name = [&](const char* key, const std::optional<int64_t>& id) {
      if (id) config[key] = known->tokens[static_cast<size_t>(*id)];
    };
    name("bos_token", known->bos_id);
    name("eos_token", known->eos_id);
    name("unk_token", known->unk_id);
    name("pad_token", known->pad_id);
    if (const auto chat = file_->text("tokenizer.chat_template")) config["chat_template"] = *chat;
    Json generation = Json::object();
    if (known->bos_id) generation["bos_token_id"] = *known->bos_id;
    if (known->eos_id) generation["eos_token_id"] = *known->eos_id;
    return {{"tokenizer.json", tokenizer_json_of(*known)},
            {"tokenizer_config.json", config.dump(2) + "\n"},
            {"generation_config.json", generation.dump(2) + "\n"}};
  }
  std::string quality_note() const override {
    return stored_as_.empty() ? ""
                              : fmt::format(
                                    "the weights were quantised ({}) before cinch saw them; start from unquantised "
                                    "weights for better quality",
                                    stored_as_);
  }

 private:
  std::filesystem::path path_;
  std::unique_ptr<GgufSource> file_;
  const ModelFamily* family_ = nullptr;
  ModelConfig config_;
  std::unique_ptr<RenamedTensors> tensors_;
  std::string stored_as_;
};

}  // namespace

std::shared_ptr<ModelSource> ModelSource::open(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) throw ConfigError(fmt::format("{}: no such file or folder", path.string()));
  return with_context(fmt::format("opening the model {}", path.string()), [&]() -> std::shared_ptr<ModelSource> {
    if (std::filesystem::is_directory(path)) return std::make_shared<FolderSource>(path);
    if (gguf_format().recognises(path)) return std::make_shared<GgufModelSource>(path);
    if (path.extension() == ".safetensors" || path.extension() == ".h5") {
      throw ConfigError(fmt::format("{}: a tensor file alone does not say what model it is", path.string()),
                        "name the folder that holds it and config.json");
    }
    throw ConfigError(fmt::format("{}: not a model", path.string()),
                      "a model is a Hugging Face folder, a cinch folder or a .gguf file");
  });
}

at::Tensor ModelSource::tensor(const std::string& name, at::ScalarType dtype) const {
  return with_context(fmt::format("reading tensor \"{}\"", name),
                      [&] { return to_torch(tensors().read(name), dtype); });
}

TensorReader ModelSource::reader(at::ScalarType dtype) const {
  return [this, dtype](const std::string& name) { return tensor(name, dtype); };
}

}  // namespace cinch
