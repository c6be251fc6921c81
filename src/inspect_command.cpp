#include <fmt/format.h>

#include <memory>

#include "src/command_list.h"
#include "src/model_argument.h"
#include "src/output.h"

namespace cinch {
namespace {

struct InspectOptions {
  std::string model;
  bool tensors = false;
};

std::string shape_text(const std::vector<int64_t>& shape) { return fmt::format("({})", fmt::join(shape, ", ")); }

std::string stored_type(const TensorInfo& info) {
  return info.stored_as.empty() ? std::string(dtype_name(info.dtype)) : info.stored_as;
}

struct Storage {
  uint64_t bytes = 0;
  size_t files = 0;
  bool digests = false;
};

Storage storage_of(const TensorSource& tensors) {
  Storage storage{.files = tensors.files().size()};
  for (const auto& file : tensors.files()) storage.bytes += std::filesystem::file_size(file);
  storage.digests = !tensors.tensors().empty() && !tensors.recorded_digest(tensors.tensors().front().name).empty();
  return storage;
}

Json to_json(const ModelSource& model, bool with_tensors) {
  Json json = summary_json(model);
  const Storage storage = storage_of(model.tensors());
  json["file"] = {
      {"format", model.tensors().format()},          {"files", storage.files},  {"bytes", storage.bytes},
      {"tensors", model.tensors().tensors().size()}, {"structure", "complete"}, {"digests_recorded", storage.digests}};
  if (!with_tensors) return json;
  json["tensors"] = Json::array();
  for (const TensorInfo& info : model.tensors().tensors()) {
    json["tensors"].push_back({{"name", info.name}, {"dtype", stored_type(info)}, {"shape", info.shape}});
  }
  return json;
}

std::string kind_text(const AttentionSpec& layer) {
  if (layer.kind == AttentionKind::latent) return "MLA";
  if (layer.n_kv_heads == layer.n_heads) return "MHA";
  return layer.n_kv_heads == 1 ? "MQA" : "GQA";
}

/// Runs of alike layers share a row: "0-29".
std::string layer_table(const ModelConfig& config) {
  const auto if_latent = [](const AttentionSpec& layer, int64_t value) {
    return layer.kind == AttentionKind::latent ? std::to_string(value) : "-";
  };
  std::vector<std::vector<std::string>> rows = {{"layers", "kind", "heads", "KV heads", "head dim", "latent", "rotary",
                                                 "window", "KV numbers/token", "KV bytes/token"}};
  for (size_t begin = 0; begin < config.layers.size();) {
    size_t end = begin + 1;
    while (end < config.layers.size() && config.layers[begin] == config.layers[end]) ++end;
    const AttentionSpec& layer = config.layers[begin];
    rows.push_back({end == begin + 1 ? std::to_string(begin) : fmt::format("{}-{}", begin, end - 1), kind_text(layer),
                    std::to_string(layer.n_heads), std::to_string(layer.n_kv_heads), std::to_string(layer.head_dim),
                    if_latent(layer, layer.kv_lora_rank), if_latent(layer, layer.qk_rope_head_dim),
                    layer.window > 0 ? std::to_string(layer.window) : "-", std::to_string(layer.kv_elements()),
                    std::to_string(2 * layer.kv_elements())});
    begin = end;
  }
  return format_table(rows);
}

std::string to_text(const ModelSource& model, bool with_tensors) {
  const ModelConfig& config = model.config();
  const Storage storage = storage_of(model.tensors());
  std::string text =
      fmt::format("{}: {} ({}), {} parameters, {}\n", model.path().string(), config.architecture, config.family,
                  human_count(static_cast<uint64_t>(parameter_count(model))), config.dtype);
  text += fmt::format("hidden size {}, MLP {}, vocabulary {}, context {}, {} layers\n\n", config.hidden_size,
                      config.intermediate_size, config.vocab_size, config.max_position_embeddings, config.n_layers);
  text += layer_table(config);
  text += fmt::format("\nKV cache at 16 bits: {} bytes per token", config.kv_bytes_per_token());
  for (const auto& [name, tokens] : {std::pair{"4k", 4096}, {"32k", 32768}, {"128k", 131072}}) {
    text += fmt::format("; {} at {}", human_bytes(static_cast<uint64_t>(kv_bytes_at(config, tokens))), name);
  }
  text +=
      fmt::format("\nFiles: {}, {} file(s), {}, {} tensors, all present with the right shapes{}\n",
                  model.tensors().format(), storage.files, human_bytes(storage.bytes), model.tensors().tensors().size(),
                  storage.digests ? "; digests recorded (`cinch verify` checks them)" : "");
  if (!model.quality_note().empty()) text += fmt::format("Note: {}\n", model.quality_note());
  if (!with_tensors) return text;
  std::vector<std::vector<std::string>> rows = {{"tensor", "dtype", "shape"}};
  for (const TensorInfo& info : model.tensors().tensors())
    rows.push_back({info.name, stored_type(info), shape_text(info.shape)});
  return text + "\n" + format_table(rows);
}

void run(const InspectOptions& options) {
  const auto model = open_model(options.model, "MODEL");
  if (json_output()) {
    print_json(to_json(*model, options.tensors));
  } else {
    print(to_text(*model, options.tensors));
  }
}

}  // namespace

Command inspect_command() {
  return {"inspect", [](CLI::App& app) {
            auto options = std::make_shared<InspectOptions>();
            CLI::App* command =
                app.add_subcommand("inspect", "Architecture, attention sizes, KV cache bytes and files of a model");
            command->add_option("MODEL", options->model, "Hugging Face folder, cinch folder or .gguf file")
                ->required()
                ->type_name("PATH");
            command->add_flag("--tensors", options->tensors, "List every tensor");
            command->callback([options] { run(*options); });
          }};
}

}  // namespace cinch
