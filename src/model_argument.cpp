#include "src/model_argument.h"

#include <fmt/format.h>

#include "core/errors.h"
#include "core/progress.h"
#include "src/usage_errors.h"

namespace cinch {

std::shared_ptr<ModelSource> open_model(const std::string& path, const std::string& flag) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    throw UsageError(
        fmt::format("{}: no such file or folder: {}", flag, path),
        "a model is a Hugging Face folder (config.json, *.safetensors), a folder that cinch wrote, or a .gguf file");
  }
  auto model = ModelSource::open(path);
  if (!model->quality_note().empty()) log_warning(fmt::format("{}: {}", path, model->quality_note()));
  return model;
}

c10::ScalarType compute_dtype(const std::string& name) {
  require_choice("--dtype", name, {"f32", "bf16", "f16", "f64"});
  if (name == "bf16") return c10::kBFloat16;
  if (name == "f16") return c10::kHalf;
  return name == "f64" ? c10::kDouble : c10::kFloat;
}

int64_t parameter_count(const ModelSource& model) {
  int64_t count = 0;
  for (const WeightSpec& weight : model.family().weights(model.config())) {
    int64_t numel = 1;
    for (const int64_t size : weight.shape) numel *= size;
    count += numel;
  }
  return count;
}

Json summary_json(const ModelSource& model) { return model_summary(model.config(), parameter_count(model)); }

}  // namespace cinch
