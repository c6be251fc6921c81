#include <ATen/ATen.h>
#include <fmt/format.h>

#include <chrono>
#include <memory>

#include "core/errors.h"
#include "core/progress.h"
#include "model/model_writer.h"
#include "src/command_list.h"
#include "src/model_argument.h"
#include "src/output.h"
#include "src/output_target.h"
#include "src/usage_errors.h"

namespace cinch {
namespace {

struct ExportFlags {
  std::string model;
  ModelWriterOptions writer{.output = {}, .format = "", .dtype = "", .force = false};
};

void check(const ExportFlags& flags) {
  require_choice("--format", flags.writer.format, {"hf", "gguf", "native", "hdf5", "safetensors"});
  const std::string& dtype = flags.writer.dtype;
  if (!dtype.empty()) require_choice("--dtype", dtype, {"f32", "f16", "bf16", "q8_0"});
  if (dtype == "q8_0" && flags.writer.format != "gguf") {
    throw UsageError(fmt::format("--dtype q8_0 exists only in gguf files, not in {}", flags.writer.format),
                     "add --format gguf or choose f32, f16, bf16");
  }
}

Json provenance(const ExportFlags& flags, const ModelSource& model, const std::map<std::string, std::string>& digests) {
  return {{"cinch", CINCH_VERSION},        {"command", "export"},         {"source", model.path().filename().string()},
          {"format", flags.writer.format}, {"dtype", flags.writer.dtype}, {"digests", digests}};
}

void run(const ExportFlags& flags) {
  check(flags);
  const auto start = std::chrono::steady_clock::now();
  const c10::InferenceMode inference;
  const auto model = open_model(flags.model, "MODEL");
  check_output_target(flags.model, flags.writer.output, flags.writer.force);
  const auto weights = model->family().weights(model->config());
  const auto writer = ModelWriter::create(model->config(), *model, flags.writer);
  Progress progress({.phase = "export", .unit = "tensors", .total = weights.size()});
  for (const WeightSpec& weight : weights) {
    check_interrupt();
    writer->copy(weight.name);
    model->tensors().release(weight.name);
    progress.advance();
  }
  progress.finish();
  writer->write_side_file(
      "cinch.json",
      provenance(flags, *model, writer->digests()).dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  writer->commit();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (json_output()) {
    print_json({{"output", flags.writer.output.string()},
                {"format", flags.writer.format},
                {"tensors", weights.size()},
                {"seconds", seconds}});
  } else {
    print(fmt::format("{}: {} tensors as {} in {:.1f} s\n", flags.writer.output.string(), weights.size(),
                      flags.writer.format, seconds));
  }
}

}  // namespace

Command export_command() {
  return {"export", [](CLI::App& app) {
            auto flags = std::make_shared<ExportFlags>();
            CLI::App* command =
                app.add_subcommand("export", "Write a model in another file format, with the same function");
            command->add_option("MODEL", flags->model, "Hugging Face folder, cinch folder or .gguf file")
                ->required()
                ->type_name("PATH");
            command
                ->add_option("OUT", flags->writer.output,
                             "Folder (hf, native, hdf5) or file (gguf, safetensors) to write")
                ->required()
                ->type_name("PATH");
            command->add_option("--format", flags->writer.format, "Target form")
                ->required()
                ->type_name("hf|gguf|native|hdf5|safetensors");
            command->add_option("--dtype", flags->writer.dtype, "Type of the weights (default: as the source)")
                ->type_name("f32|f16|bf16|q8_0");
            command->add_flag("--force", flags->writer.force, "Replace an existing OUT once the new one is complete");
            command->callback([flags] { run(*flags); });
          }};
}

}  // namespace cinch
