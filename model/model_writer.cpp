#include "model/model_writer.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <span>

#include "checkpoints/checkpoint_format.h"
#include "core/errors.h"
#include "core/files.h"
#include "core/progress.h"
#include "model/export/runtime_rules.h"
#include "model/gguf/gguf_layout.h"
#include "model/gguf/gguf_mapping.h"
#include "model/gguf/gguf_rope.h"
#include "model/mixed_layers.h"

namespace cinch {
namespace {

struct OutputType {
  Dtype dtype = Dtype::kF32;
  bool q8_0 = false;
};

OutputType parse_output_dtype(const std::string& name, const std::string& format, const ModelConfig& config) {
  if (name.empty()) {
    const std::string& source = config.dtype;
    return {source == "bfloat16"  ? Dtype::kBF16
            : source == "float16" ? Dtype::kF16
            : source == "float64" ? Dtype::kF64
                                  : Dtype::kF32};
  }
  if (name == "f32" || name == "float32") return {Dtype::kF32};
  if (name == "f16" || name == "float16") return {Dtype::kF16};
  if (name == "bf16" || name == "bfloat16") return {Dtype::kBF16};
  if (name == "f64" || name == "float64") return {Dtype::kF64};
  if (name == "q8_0" && format == "gguf") return {Dtype::kF32, true};
  throw UsageError(fmt::format("--dtype \"{}\" cannot be written as {}", name, format),
                   format == "gguf" ? "known: f32, f16, bf16, q8_0" : "known: f32, f16, bf16, f64");
}

const char* config_dtype(Dtype dtype) {
  return dtype == Dtype::kBF16  ? "bfloat16"
         : dtype == Dtype::kF16 ? "float16"
         : dtype == Dtype::kF64 ? "float64"
                                : "float32";
}

/// The target's own folder and name, without a trailing slash.
std::filesystem::path clean_target(const std::filesystem::path& target) {
  const std::filesystem::path absolute = std::filesystem::absolute(target).lexically_normal();
  return absolute.has_filename() ? absolute : absolute.parent_path();
}

std::string temporary_prefix(const std::filesystem::path& target) {
  return fmt::format(".{}.tmp-", target.filename().string());
}

/// A name beside the target that no other run uses; what it holds is swapped in at commit.
std::filesystem::path temporary_beside(const std::filesystem::path& target) {
  return target.parent_path() / fmt::format("{}{}", temporary_prefix(target), ::getpid());
}

/// What runs left that were killed before they could tidy up.
void remove_stale_temporaries(const std::filesystem::path& target) {
  const std::string prefix = temporary_prefix(target);
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(target.parent_path(), ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(prefix)) continue;
    const int process = std::atoi(name.c_str() + prefix.size());
    if (process > 0 && ::kill(process, 0) != 0 && errno == ESRCH) std::filesystem::remove_all(entry.path(), ignored);
  }
}

void check_target(const ModelWriterOptions& options) {
  if (!std::filesystem::exists(options.output) || options.force) return;
  if (std::filesystem::is_directory(options.output) && std::filesystem::is_empty(options.output)) return;
  throw UsageError(fmt::format("{} exists already", options.output.string()),
                   "give --force to replace it, or another output");
}

/// Puts `temporary` in the place of `target` in one step; an old one goes only when the new one is there.
void swap_in(const std::filesystem::path& temporary, const std::filesystem::path& target) {
  std::error_code failure;
  if (!std::filesystem::exists(target)) {
    std::filesystem::rename(temporary, target, failure);
    if (failure) throw_system_error("cannot write", target, failure.value());
  } else if (::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) {
    std::filesystem::remove_all(temporary, failure);
  } else {  // file systems without an exchange
    std::filesystem::path old = temporary;
    old += ".old";
    std::filesystem::rename(target, old, failure);
    if (failure) throw_system_error("cannot replace", target, failure.value());
    std::filesystem::rename(temporary, target, failure);
    if (failure) {
      std::error_code ignored;
      std::filesystem::rename(old, target, ignored);
      throw_system_error("cannot write", target, failure.value());
    }
    std::filesystem::remove_all(old, failure);
  }
  if (failure) log_warning(fmt::format("cannot remove the old {}: {}", target.string(), failure.message()));
  sync_folder(target.parent_path());
}

/// From its own file (transformers 5) or tokenizer_config.json; empty when there is none.
std::string chat_template(const std::map<std::string, std::string>& side_files) {
  if (const auto own = side_files.find("chat_template.jinja"); own != side_files.end()) return own->second;
  const auto found = side_files.find("tokenizer_config.json");
  if (found == side_files.end()) return {};
  const Json json = parse_json(found->second, "tokenizer_config.json");
  return json.contains("chat_template") && json.at("chat_template").is_string()
             ? json.at("chat_template").get<std::string>()
             : "";
}

class SinkWriter : public ModelWriter {
 public:
  SinkWriter(const ModelConfig& config, const ModelSource& source, const ModelWriterOptions& options)
      : config_(config),
        source_(source),
        options_(options),
        type_(parse_output_dtype(options.dtype, options.format, config)) {
    check_target(options);
    options_.output = clean_target(options.output);
    const std::filesystem::path parent = options_.output.parent_path();
    if (!std::filesystem::is_directory(parent))
      throw UsageError(fmt::format("{}: the folder {} does not exist", options.output.string(), parent.string()));
    temporary_ = temporary_beside(options_.output);
    remove_stale_temporaries(options_.output);
    config_.dtype = config_dtype(type_.dtype);
  }

  ~SinkWriter() override {
    if (committed_) return;
    sink_.reset();
    std::error_code failure;
    std::filesystem::remove_all(temporary_, failure);
    if (failure) log_warning(fmt::format("cannot remove {}: {}", temporary_.string(), failure.message()));
  }

  void write(const std::string& name, const at::Tensor& tensor) override {
    if (!is_gguf()) {
      sink_->write(name, to_bytes(tensor, type_.dtype));
      return;
    }
    const GgufPlacement placement(config_, name, tensor.sizes().vec());
    const std::vector<at::Tensor> parts = placement.to_parts(tensor);
    for (size_t i = 0; i < parts.size(); ++i) {
      const GgufPart& part = placement.parts()[i];
      sink_->write(part.name, to_bytes(parts[i], gguf_info(part).dtype));
    }
  }

  void copy(const std::string& name) override {
    const TensorData data = source_.tensors().read(name);
    const std::vector<TensorInfo> infos = infos_of({name, data.info.shape});
    const bool changes = is_gguf() && GgufPlacement(config_, name, data.info.shape).changes();
    if (data.info.dtype == infos.front().dtype && !changes) {
      sink_->write(infos.front().name, data.bytes);
    } else {
      write(name, to_torch(data, torch_dtype(data.info.dtype)));
    }
    source_.tensors().release(name);
  }

  void write_side_file(const std::string& name, const std::string& content) override {
    if (is_folder()) write_text(temporary_ / name, content);
  }

  const std::map<std::string, std::string>& digests() const override { return sink_->digests(); }

  std::filesystem::path complete() override {
    if (completed_) return temporary_;
    sink_->commit();
    completed_ = true;
    if (!is_folder()) return temporary_;
    for (const auto& [name, content] : source_.side_files()) {
      if (!std::filesystem::exists(temporary_ / name)) write_text(temporary_ / name, content);
    }
    return temporary_;
  }

  void commit() override {
    complete();
    if (is_folder()) sync_folder(temporary_);
    swap_in(temporary_, options_.output);
    committed_ = true;
  }

  /// Opens the sink and declares every tensor. Separate from the constructor so that a failure here still removes the
  /// temporary files.
  void start() {
    const std::vector<WeightSpec> weights = source_.family().weights(config_);
    check_space(weights);
    if (is_folder()) {
      std::error_code failure;
      std::filesystem::remove_all(temporary_, failure);
      std::filesystem::create_directory(temporary_, failure);
      if (failure) throw_system_error("cannot create", temporary_, failure.value());
      Json json = source_.family().to_json(config_);
      write_layer_list(config_, json);
      write_text(temporary_ / "config.json", json.dump(2) + "\n");
    }
    sink_ = make_sink();
    std::vector<TensorInfo> infos;
    for (const WeightSpec& weight : weights) {
      for (TensorInfo& info : infos_of(weight)) infos.push_back(std::move(info));
    }
    if (!is_gguf()) {
      sink_->declare(infos);
      return;
    }
    const auto rope_tensors = gguf_rope_tensors(config_);
    for (const auto& [name, values] : rope_tensors)
      infos.push_back({name, Dtype::kF32, {static_cast<int64_t>(values.size())}, ""});
    sink_->declare(infos);
    for (const auto& [name, values] : rope_tensors) sink_->write(name, std::as_bytes(std::span(values)));
  }

 private:
  /// Before anything is written: a full disk after an hour of work helps nobody.
  void check_space(const std::vector<WeightSpec>& weights) const {
    uint64_t needed = 0;
    for (const WeightSpec& weight : weights) {
      for (const TensorInfo& info : infos_of(weight))
        needed += info.stored_as == "Q8_0" ? static_cast<uint64_t>(info.numel()) / 32 * 34 : info.bytes();
    }
    const uint64_t free = free_disk_bytes(options_.output.parent_path());
    if (needed > free) {
      throw ResourceError(
          fmt::format("{}: {} bytes are needed, {} are free there", options_.output.string(), needed, free),
          "free some space, or write to another disk");
    }
  }

  bool is_folder() const { return is_folder_format(options_.format); }
  bool is_gguf() const { return options_.format == "gguf"; }

  /// What the file holds of a tensor.
  std::vector<TensorInfo> infos_of(const WeightSpec& weight) const {
    if (!is_gguf()) return {{weight.name, type_.dtype, weight.shape, ""}};
    std::vector<TensorInfo> infos;
    const GgufPlacement placement(config_, weight.name, weight.shape);
    for (const GgufPart& part : placement.parts()) infos.push_back(gguf_info(part));
    return infos;
  }

  TensorInfo gguf_info(const GgufPart& part) const {
    TensorInfo info{part.name, type_.dtype, part.shape, ""};
    // ggml computes with f32 vectors. Rows of the latent that go through a neutral norm lie far below the others'
    // (stock_latent.h), which narrow types and quantised blocks would round to nothing.
    const bool wide = part.shape.size() == 1 || part.name.ends_with("attn_kv_a_mqa.weight");
    if (wide && (type_.q8_0 || type_.dtype == Dtype::kF16 || part.shape.size() == 1)) {
      info.dtype = Dtype::kF32;
    } else if (type_.q8_0) {
      // Programs round what they multiply with such blocks to 8 bits too. What reads the latent sees channels of very
      // different sizes there, which share a block's scale: it stays in f16, as rows do that fill no blocks.
      const bool reads_latent = part.name.ends_with("attn_k_b.weight") || part.name.ends_with("attn_v_b.weight");
      const bool fills = part.shape.back() % 32 == 0 && !reads_latent;
      info.dtype = fills ? Dtype::kF32 : Dtype::kF16;
      info.stored_as = fills ? "Q8_0" : "";
    }
    return info;
  }

  std::unique_ptr<TensorSink> make_sink() const {
    if (is_gguf()) {
      const auto vocabulary = source_.vocabulary();
      const uint32_t file_type = type_.q8_0 ? 7 : type_.dtype == Dtype::kF16 ? 1 : type_.dtype == Dtype::kBF16 ? 32 : 0;
      return create_gguf_sink(temporary_, gguf_metadata_of(config_, vocabulary ? &*vocabulary : nullptr, file_type,
                                                           chat_template(source_.side_files())));
    }
    SinkOptions sink;
    sink.metadata["format"] = "pt";
    if (options_.format == "hf" || options_.format == "native") {
      sink.path = temporary_;
      sink.shard_bytes = options_.shard_bytes;
      return checkpoint_format("safetensors").create(sink);
    }
    sink.path = options_.format == "hdf5" ? temporary_ / "model.h5" : temporary_;
    return checkpoint_format(options_.format).create(sink);
  }

  ModelConfig config_;
  const ModelSource& source_;
  ModelWriterOptions options_;
  OutputType type_;
  std::filesystem::path temporary_;
  std::unique_ptr<TensorSink> sink_;
  bool completed_ = false, committed_ = false;
};

}  // namespace

std::unique_ptr<ModelWriter> ModelWriter::create(const ModelConfig& config, const ModelSource& source,
                                                 const ModelWriterOptions& options) {
  static const std::vector<std::string> known = {"hf", "safetensors", "hdf5", "native", "gguf"};
  if (std::find(known.begin(), known.end(), options.format) == known.end()) {
    throw UsageError(fmt::format("--format \"{}\" is not known", options.format),
                     fmt::format("known: {}", fmt::join(known, ", ")));
  }
  check_holds_layers(config, options.format);
  if (options.format == "gguf") require_runtime(config, "llama.cpp", options.approximate);
  auto writer = std::make_unique<SinkWriter>(config, source, options);
  writer->start();
  return writer;
}

void check_holds_layers(const ModelConfig& config, const std::string& format) {
  const std::string reason = native_reason(config);
  if (reason.empty() || format == "hdf5" || format == "native") return;
  throw UnsupportedError(
      fmt::format("format {} holds stock model classes, and no stock class holds this model: {}", format, reason),
      has_latent_layers(config) ? "write a folder for cinch: --format native (safetensors) or --format hdf5"
                                : "write a folder for cinch (--format native or hdf5), or convert all layers alike");
}

bool is_folder_format(const std::string& format) { return format == "hf" || format == "hdf5" || format == "native"; }

Dtype output_dtype(const ModelWriterOptions& options, const ModelConfig& config) {
  return parse_output_dtype(options.dtype, options.format, config).dtype;
}

}  // namespace cinch
