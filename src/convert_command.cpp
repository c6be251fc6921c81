#include <fmt/format.h>

#include <memory>

#include "convert/converter.h"
#include "core/errors.h"
#include "src/command_list.h"
#include "src/convert_options.h"
#include "src/device.h"
#include "src/model_argument.h"
#include "src/output.h"
#include "src/output_target.h"
#include "src/plan_output.h"

namespace cinch {
namespace {

std::string share(const Json& value) { return value.is_number() ? fmt::format("{:.4f}", value.get<double>()) : "-"; }

std::string layer_table(const Json& layers) {
  std::vector<std::vector<std::string>> rows = {
      {"layer", "key energy kept", "value energy kept", "error before refit", "error"}};
  for (const Json& layer : layers) {
    rows.push_back({std::to_string(layer["layer"].get<int64_t>()), share(layer["kept_energy_k"]),
                    share(layer["kept_energy_v"]), share(layer["output_error_before_refit"]),
                    share(layer["output_error"])});
  }
  return format_table(rows);
}

std::string to_text(const Json& report) {
  std::string text = layer_table(report["layers"]);
  const Json& loss = report["held_out"];
  if (loss.is_object()) {
    text += fmt::format(
        "\nOn {} held-out calibration tokens, which no fit has seen: loss {:.4f} -> {:.4f} nats, KL {:.4f}\n",
        loss["tokens"].get<int64_t>(), loss["nll_before"].get<double>(), loss["nll_after"].get<double>(),
        loss["kl"].get<double>());
  }
  const Json& check = report["verification"];
  text += fmt::format("Verified: {} new tensors read back, logits of {} tokens within {:.2g}\n",
                      check["tensors"].get<int64_t>(), check["tokens"].get<int64_t>(),
                      check["max_abs_logit_difference"].get<double>());
  return text +
         fmt::format("{}: cache {:.1f} % of the source's ({} -> {} bytes per token), in {:.1f} s with {} of memory\n",
                     report["output"].get<std::string>(), 100 * report["kv_ratio"].get<double>(),
                     report["kv_bytes_per_token"]["source"].get<int64_t>(),
                     report["kv_bytes_per_token"]["target"].get<int64_t>(), report["seconds"].get<double>(),
                     human_bytes(report["peak_memory_bytes"].get<uint64_t>()));
}

void run(const ConvertFlags& flags) {
  if (flags.force && flags.resume)
    throw UsageError("--force and --resume contradict each other", "--resume goes on, --force starts over");
  const ConversionRecipe recipe = recipe_of_flags(flags);
  ConvertOptions options{.output = output_of_flags(flags),
                         .resume = flags.resume,
                         .device = open_device(flags.device),
                         .bundled_calibration = find_bundled_calibration()};
  const auto model = open_model(flags.model, "MODEL");
  if (flags.dry_run) {
    print_plan(plan_conversion(*model, recipe, options.output));
    return;
  }
  check_output_target(flags.model, flags.out, flags.force);
  const Json report = convert_model(model, recipe, options).json;
  if (json_output()) {
    print_json(report);
  } else {
    print(to_text(report));
  }
}

}  // namespace

Command convert_command() {
  return {"convert", [](CLI::App& app) {
            auto flags = std::make_shared<ConvertFlags>();
            CLI::App* command = app.add_subcommand("convert", "Convert a model to fewer key-value heads, and write it");
            command->add_option("MODEL", flags->model, "Hugging Face folder, cinch folder or .gguf file")
                ->required()
                ->type_name("PATH");
            command->add_option("OUT", flags->out, "Folder (hf, hdf5) or file (gguf, safetensors) to write")
                ->required()
                ->type_name("PATH");
            add_convert_options(*command, *flags);
            command->callback([flags] { run(*flags); });
          }};
}

}  // namespace cinch
