#include <fmt/format.h>

#include <set>

#include "checkpoints/checkpoint_format.h"
#include "checkpoints/formats/gguf.h"
#include "checkpoints/formats/hdf5_container.h"
#include "checkpoints/formats/safetensors.h"
#include "core/errors.h"
#include "core/json.h"

namespace cinch {

const std::vector<const CheckpointFormat*>& checkpoint_formats() {
  static const std::vector<const CheckpointFormat*> formats = {&safetensors_format(), &hdf5_format(), &gguf_format()};
  return formats;
}

const CheckpointFormat& checkpoint_format(const std::string& name) {
  std::vector<std::string> known;
  for (const CheckpointFormat* format : checkpoint_formats()) {
    if (format->name() == name) return *format;
    known.push_back(format->name());
  }
  throw UsageError(fmt::format("unknown checkpoint format \"{}\"", name),
                   fmt::format("known formats: {}", fmt::join(known, ", ")));
}

std::unique_ptr<TensorSource> open_tensors(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) throw CheckpointError(fmt::format("{}: no such file or folder", path.string()));
  for (const CheckpointFormat* format : checkpoint_formats()) {
    if (format->recognises(path)) return format->open(path);
  }
  static const std::set<std::string> pickles = {".bin", ".pt", ".pth", ".ckpt", ".pkl"};
  const bool pickle_file = pickles.contains(path.extension().string());
  const bool pickle_folder =
      std::filesystem::is_directory(path) && (std::filesystem::exists(path / "pytorch_model.bin") ||
                                              std::filesystem::exists(path / "pytorch_model.bin.index.json"));
  if (pickle_file || pickle_folder) {
    throw CheckpointError(
        fmt::format("{}: pickle files are not read, because loading one can run any code", path.string()),
        "convert it with transformers: model.save_pretrained(folder, safe_serialization=True)");
  }
  throw CheckpointError(fmt::format("{}: no model tensors found", path.string()),
                        "a model is a folder with *.safetensors or model.h5, or a .gguf file");
}

}  // namespace cinch
