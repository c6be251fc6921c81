#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "attention/attention_kernel.h"
#include "convert/converter.h"
#include "core/errors.h"
#include "src/command_list.h"
#include "src/convert_options.h"
#include "src/device.h"
#include "src/export_output.h"
#include "src/model_argument.h"
#include "src/output.h"
#include "src/output_target.h"
#include "src/plan_output.h"

namespace cinch {
namespace {

std::string share(const Json& value) {
  if (value.is_number_integer()) return std::to_string(value.get<int64_t>());
  return value.is_number() ? fmt::format("{:.4f}", value.get<double>()) : "-";
}

std::string layer_table(const Json& layers) {
  const std::vector<std::pair<const char*, const char*>> columns = {{"key energy kept", "kept_energy_k"},
                                                                    {"value energy kept", "kept_energy_v"},
                                                                    {"predicted error", "predicted_error"},
                                                                    {"error before refit", "output_error_before_refit"},
                                                                    {"error", "output_error"},
                                                                    {"rank", "rank"}};
  std::vector<std::vector<std::string>> rows = {{"layer"}};
  for (const Json& layer : layers) rows.push_back({std::to_string(layer["layer"].get<int64_t>())});
  for (const auto& [heading, key] : columns) {
    const std::string name = key;
    if (std::none_of(layers.begin(), layers.end(), [&](const Json& layer) { return layer.contains(name); })) continue;
    rows[0].push_back(heading);
    for (size_t i = 0; i < layers.size(); ++i) rows[i + 1].push_back(share(layers[i].value(name, Json())));
  }
  return format_table(rows);
}

std::string to_text(const Json& report) {
  std::string text = layer_table(report["layers"]);
  for (const Json& layer : report["suspicious_layers"]) {
    text += fmt::format("\nLook at layer {}: {}\n", layer["layer"].get<int64_t>(), layer["reason"].get<std::string>());
  }
  if (const Json& slots = report["shared_slots"]; slots.is_object()) {
    text += fmt::format(
        "\nOne list of rotary frequencies for all layers: predicted error {:.4f}, with each layer's own {:.4f} "
        "(--slots own)\n",
        slots["predicted_error"].get<double>(), slots["predicted_error_own_slots"].get<double>());
  }
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
  force_attention_kernel(flags.kernel);
  const ConversionRecipe recipe = recipe_of_flags(flags);
  ConvertOptions options{.output = output_of_flags(flags),
                         .resume = flags.resume,
                         .statistics = flags.statistics,
                         .device = open_device(flags.device),
                         .bundled_calibration = find_bundled_calibration()};
  std::optional<ModelWriterOptions> exported;
  if (!flags.export_to.empty()) exported = export_of_flags(flags);
  const auto model = open_model(flags.model, "MODEL");
  if (flags.dry_run) {
    print_plan(plan_conversion(*model, recipe, options.output));
    return;
  }
  check_output_target(flags.model, flags.out, flags.force);
  if (exported) check_output_target(flags.model, exported->output, flags.force);
  Json report = convert_model(model, recipe, options).json;
  std::string text = to_text(report);
  if (exported) {
    const ExportReport written = export_converted(flags.out, *exported);
    report["export"] = written.to_json();
    text += export_text(exported->output, written);
  }
  if (json_output()) {
    print_json(report);
  } else {
    print(text);
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
