#include <fmt/format.h>

#include <chrono>
#include <memory>

#include "core/errors.h"
#include "src/byte_size.h"
#include "src/command_list.h"
#include "src/export_output.h"
#include "src/model_argument.h"
#include "src/output.h"
#include "src/output_target.h"
#include "src/usage_errors.h"

namespace cinch {
namespace {

struct ExportFlags {
  std::string model;
  ExportOptions options{.writer = {.output = {}, .format = "", .dtype = "", .force = false}, .provenance = {}};
  std::string shard_size = "5GB";
};

void check(ExportFlags& flags) {
  ModelWriterOptions& writer = flags.options.writer;
  if (!writer.runtime.empty()) require_choice("--runtime", writer.runtime, known_runtimes());
  if (writer.format.empty()) {
    if (writer.runtime.empty()) {
      throw UsageError(
          "--format is missing: say what to write",
          "for example --format gguf, or --runtime vllm for what that runtime reads; see `cinch export --help`");
    }
    writer.format = writer.runtime == "llama.cpp" ? "gguf" : "hf";
  }
  require_choice("--format", writer.format, {"hf", "gguf", "native", "hdf5", "safetensors"});
  if (!writer.dtype.empty()) require_choice("--dtype", writer.dtype, {"f32", "f16", "bf16", "q8_0"});
  if (writer.dtype == "q8_0" && writer.format != "gguf") {
    throw UsageError(fmt::format("--dtype q8_0 exists only in gguf files, not in {}", writer.format),
                     "add --format gguf or choose f32, f16, bf16");
  }
  if (flags.options.pad_rank < 0) throw UsageError(fmt::format("--pad-rank {}: is negative", flags.options.pad_rank));
  writer.shard_bytes = parse_byte_size("--shard-size", flags.shard_size);
}

void run(ExportFlags& flags) {
  check(flags);
  const auto start = std::chrono::steady_clock::now();
  const ModelWriterOptions& writer = flags.options.writer;
  const auto model = open_model(flags.model, "MODEL");
  check_output_target(flags.model, writer.output, writer.force);
  const ExportReport report = export_with_provenance(model, flags.options);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (json_output()) {
    Json json = {{"output", writer.output.string()}, {"format", writer.format}, {"seconds", seconds}};
    json.update(report.to_json());
    print_json(json);
  } else {
    print(export_text(writer.output, report));
  }
}

}  // namespace

Command export_command() {
  return {"export", [](CLI::App& app) {
            auto flags = std::make_shared<ExportFlags>();
            CLI::App* command = app.add_subcommand(
                "export", "Write a model for a runtime, or in another file format, with the same function");
            command->add_option("MODEL", flags->model, "Hugging Face folder, cinch folder or .gguf file")
                ->required()
                ->type_name("PATH");
            command
                ->add_option("OUT", flags->options.writer.output,
                             "Folder (hf, native, hdf5) or file (gguf, safetensors) to write")
                ->required()
                ->type_name("PATH");
            command->add_option("--format", flags->options.writer.format, "Target form (default: what --runtime reads)")
                ->type_name("hf|gguf|native|hdf5|safetensors");
            command
                ->add_option("--runtime", flags->options.writer.runtime,
                             "Runtime that must compute the same from it (default: what reads the format)")
                ->type_name("hf|vllm|sglang|llama.cpp");
            command->add_flag("--allow-approximate", flags->options.writer.approximate,
                              "Leave out what the runtime has not, where that is possible, and measure the error");
            command
                ->add_option("--pad-rank", flags->options.pad_rank,
                             "Zero-pad a latent to this many numbers, for runtimes with fixed sizes")
                ->type_name("INT");
            command->add_option("--shard-size", flags->shard_size, "hf, native: most bytes of one safetensors file")
                ->capture_default_str()
                ->type_name("SIZE");
            command->add_option("--dtype", flags->options.writer.dtype, "Type of the weights (default: as the source)")
                ->type_name("f32|f16|bf16|q8_0");
            command->add_flag("--force", flags->options.writer.force,
                              "Replace an existing OUT once the new one is complete");
            command->callback([flags] { run(*flags); });
          }};
}

}  // namespace cinch
