#include <ATen/ATen.h>
#include <fmt/format.h>

#include <memory>

#include "checkpoints/checkpoint_format.h"
#include "core/digest.h"
#include "core/errors.h"
#include "core/progress.h"
#include "model/export/runtime_rules.h"
#include "model/model_source.h"
#include "src/command_list.h"
#include "src/output.h"
#include "src/usage_errors.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;

struct Findings {
  size_t tensors = 0, compared = 0;
  std::vector<std::string> faults;
};

/// Tensor digests that cinch.json records; empty without one.
std::map<std::string, std::string> provenance_digests(const fs::path& path) {
  const fs::path file = fs::is_directory(path) ? path / "cinch.json" : path.parent_path() / "cinch.json";
  std::map<std::string, std::string> digests;
  if (!fs::is_directory(path) || !fs::exists(file)) return digests;
  const auto recorded = JsonObject::from_file(file).object_if("digests");
  if (!recorded) return digests;
  for (const auto& [name, value] : recorded->json().items()) {
    if (!value.is_string()) throw ConfigError(fmt::format("{}: expected a text", recorded->where(name)));
    digests[name] = value.get<std::string>();
  }
  return digests;
}

bool all_finite(const TensorData& data) {
  if (!is_weight_dtype(data.info.dtype) || data.bytes.empty()) return true;
  return to_torch(data, torch_dtype(data.info.dtype)).isfinite().all().item<bool>();
}

void check_tensor(const TensorSource& source, const TensorInfo& info,
                  const std::map<std::string, std::string>& recorded, Findings& findings) {
  const TensorData data = source.read(info.name);
  const auto found = recorded.find(info.name);
  const std::string in_file = source.recorded_digest(info.name);
  if (found != recorded.end() || !in_file.empty()) {
    const std::string digest = xxh3_hex(data.bytes);
    ++findings.compared;
    if (found != recorded.end() && found->second != digest) {
      findings.faults.push_back(fmt::format("{}: digest {}, cinch.json records {}", info.name, digest, found->second));
    }
    if (!in_file.empty() && in_file != digest) {
      findings.faults.push_back(fmt::format("{}: digest {}, the file records {}", info.name, digest, in_file));
    }
  }
  if (!all_finite(data)) findings.faults.push_back(fmt::format("{}: holds NaN or infinity", info.name));
  source.release(info.name);
  ++findings.tensors;
}

Findings check_all(const fs::path& path) {
  if (fs::is_directory(path) ? fs::exists(path / "config.json") : path.extension() == ".gguf") ModelSource::open(path);
  const auto source = open_tensors(path);
  const auto recorded = provenance_digests(path);
  Findings findings;
  for (const auto& [name, digest] : recorded) {
    if (source->find(name) == nullptr)
      findings.faults.push_back(fmt::format("{}: recorded in cinch.json, absent from the files", name));
  }
  Progress progress({.phase = "verify", .unit = "tensors", .total = source->tensors().size()});
  for (const TensorInfo& info : source->tensors()) {
    check_interrupt();
    check_tensor(*source, info, recorded, findings);
    progress.advance();
  }
  progress.finish();
  return findings;
}

struct VerifyFlags {
  std::string path, runtime;
};

/// What the runtime makes of the model; throws UnsupportedError when another one.
std::string runtime_sentence(const VerifyFlags& flags) {
  if (flags.runtime.empty()) return {};
  require_choice("--runtime", flags.runtime, known_runtimes());
  const ModelConfig config = ModelSource::open(flags.path)->config();
  require_runtime(config, flags.runtime, /*approximate=*/false);
  for (const RuntimeVerdict& verdict : runtime_verdicts(config)) {
    if (verdict.name == flags.runtime) return fmt::format("{} computes it: {}\n", flags.runtime, verdict.reason);
  }
  return {};
}

void run(const VerifyFlags& flags) {
  const std::string& path = flags.path;
  const c10::InferenceMode inference;
  std::error_code error;
  if (!fs::exists(path, error)) {
    throw UsageError(fmt::format("PATH: no such file or folder: {}", path),
                     "give a model folder, or a .gguf, .safetensors or .h5 file");
  }
  const std::string runtime = runtime_sentence(flags);
  const Findings findings = check_all(path);
  if (json_output()) {
    print_json({{"path", path},
                {"ok", findings.faults.empty()},
                {"tensors", findings.tensors},
                {"digests_compared", findings.compared},
                {"runtime", flags.runtime.empty() ? Json(nullptr) : Json(flags.runtime)},
                {"faults", findings.faults}});
  }
  if (!findings.faults.empty()) {
    std::string message = fmt::format("{}: {} tensor fault(s)", path, findings.faults.size());
    for (size_t i = 0; i < std::min<size_t>(findings.faults.size(), 10); ++i) message += "\n  " + findings.faults[i];
    throw VerificationError(message, "the files changed after they were written: convert or download them again");
  }
  if (!json_output()) {
    print(fmt::format(
        "{}: {} tensors read, structure and shapes right, all numbers finite, {}\n", path, findings.tensors,
        findings.compared > 0 ? fmt::format("{} digests equal", findings.compared) : "no digests recorded"));
    print(runtime);
  }
}

}  // namespace

Command verify_command() {
  return {
      "verify", [](CLI::App& app) {
        auto flags = std::make_shared<VerifyFlags>();
        CLI::App* command =
            app.add_subcommand("verify", "Check every tensor of a model or tensor file against its recorded digest");
        command->add_option("PATH", flags->path, "Model folder, .gguf, .safetensors or .h5 file")
            ->required()
            ->type_name("PATH");
        command->add_option("--runtime", flags->runtime, "Check too that this runtime computes the model's function")
            ->type_name("hf|vllm|sglang|llama.cpp");
        command->callback([flags] { run(*flags); });
      }};
}

}  // namespace cinch
