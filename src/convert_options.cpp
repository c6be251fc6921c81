#include "src/convert_options.h"

#include <fmt/format.h>

#include <cstdlib>
#include <map>

#include "convert/transform.h"
#include "core/errors.h"
#include "model/export/runtime_rules.h"
#include "src/kernel_option.h"
#include "src/usage_errors.h"

namespace cinch {
namespace {

bool is_latent(const ConvertFlags& flags) { return flags.to == "mla"; }

/// What --for means where it says auto; "native" for cinch alone.
std::string runtime_of(const ConvertFlags& flags) {
  if (flags.runtime != "auto") return flags.runtime;
  if (flags.export_to.ends_with(".gguf")) return "llama.cpp";
  return is_latent(flags) && flags.export_to.empty() ? "native" : "hf";
}

/// Latents of a conversion live in a native folder, which `export` turns into what runtimes load.
std::string format_of(const ConvertFlags& flags) {
  if (!flags.format.empty()) return flags.format;
  const std::string runtime = runtime_of(flags);
  if (runtime == "native" || is_latent(flags)) return "hdf5";
  return runtime == "llama.cpp" && flags.export_to.empty() ? "gguf" : "hf";
}

std::string slots_of(const ConvertFlags& flags) {
  if (flags.slots != "auto") return flags.slots;
  const std::string runtime = runtime_of(flags);
  const bool chooses = is_latent(flags) && (flags.method == "auto" || flags.method == "weighted");
  return !chooses || runtime == "native" || runtime == "hf" ? "shared" : "geometric";
}

void add_recipe_options(CLI::App& command, ConvertFlags& flags) {
  std::string methods;
  for (const Transform* method : transforms()) methods += fmt::format("\n  {}: {}", method->name(), method->summary());
  command
      .add_option("--to", flags.to,
                  "Target: gqa:N (N shared key-value heads per layer), mqa (one) or mla (a cached latent)")
      ->type_name("TARGET");
  command.add_option("--kv-budget", flags.kv_budget, "mla: share of the bytes of the source's 16-bit cache, as 25%")
      ->type_name("SHARE%");
  command
      .add_option("--kv-bits", flags.kv_bits,
                  "mla: bits of a cached number as it will be served, which the budget counts with; auto: 4, or 8 for "
                  "budgets from 40 %")
      ->capture_default_str()
      ->type_name("16|8|4|auto");
  command
      .add_option("--per-layer", flags.per_layer,
                  "mla: uniform (one rank) or sensitivity (ranks where they matter, as much in all; cinch only)")
      ->capture_default_str()
      ->type_name("NAME");
  command
      .add_option("--statistics", flags.statistics,
                  "mla: moments of the original model: measured into this file, or taken from it for other sizes")
      ->type_name("FILE.h5");
  command.add_option("--rank", flags.recipe.rank, "mla: width of the latent, with --rope-dim instead of a budget")
      ->type_name("INT");
  command.add_option("--rope-dim", flags.recipe.rope_dim, "mla: width of the rotary key")->type_name("INT");
  command
      .add_option("--slots", flags.slots,
                  "mla: rotary frequencies: shared (one list for all layers, for hf), geometric (one that llama.cpp, "
                  "vllm and sglang can hold too), own (each layer's best; cinch only) or auto (what --for can hold)")
      ->capture_default_str()
      ->type_name("NAME");
  command.add_option("--method", flags.method, "How the target is found (auto: the target's default):" + methods)
      ->capture_default_str()
      ->type_name("NAME");
  command.add_option("--layers", flags.layers, "Convert only these layers (4-27, 0,3,8-11); needs --for native")
      ->type_name("LIST");
  command
      .add_option("--calibration", flags.calibration,
                  "Text or token ids to fit on (.txt, .jsonl, folder, .npy, .h5), with its share of the tokens; "
                  "default: the bundled mixture")
      ->type_name("FILE[:WEIGHT]");
  command
      .add_option("--calibration-tokens", flags.recipe.calibration_tokens,
                  "Tokens to read, an eighth of them only to measure on (default: 18432, mla 36864)")
      ->type_name("INT");
  command
      .add_option("--calibration-window", flags.recipe.calibration_window,
                  "Tokens per window (default: 512, mla 1024, or the model's context if shorter)")
      ->type_name("INT");
  flags.refit_option =
      command.add_flag("--refit,!--no-refit", flags.refit,
                       "Refit the output projection on the converted stream (default: as the method does)");
  command.add_option("--refit-lambdas", flags.recipe.refit_lambdas, "Dampings of the refit to choose among")
      ->capture_default_str()
      ->type_name("NUMBER");
  command.add_option("--fisher-rounds", flags.recipe.fisher_rounds, "Rounds of the key and query refit")
      ->capture_default_str()
      ->type_name("INT");
  command.add_option("--lag-tail", flags.recipe.lag_tail, "Share of the long-context tail in the lag weights")
      ->capture_default_str()
      ->type_name("SHARE");
  command
      .add_option("--lag-context", flags.recipe.lag_context,
                  "Furthest lag weighted (0: 8 x the calibration window; mla: 8192, or the model's shorter context)")
      ->capture_default_str()
      ->type_name("INT");
  command
      .add_option("--search-groups", flags.recipe.search_groups,
                  "Search for heads that share best instead of taking neighbours")
      ->capture_default_str()
      ->type_name("BOOL");
  command.add_option("--seed", flags.recipe.seed, "Seed of everything random")
      ->capture_default_str()
      ->type_name("UINT");
}

void add_output_options(CLI::App& command, ConvertFlags& flags) {
  command
      .add_option(
          "--for", flags.runtime,
          "Runtime that must load the result (of mla, its export): hf, vllm, sglang, llama.cpp, or native (cinch "
          "only); auto: hf, for mla what --export names, else native")
      ->capture_default_str()
      ->type_name("RUNTIME");
  command.add_option("--format", flags.format, "hf, gguf, native, hdf5 or safetensors (default: what --for loads)")
      ->type_name("NAME");
  command
      .add_option("--export", flags.export_to,
                  "When converted, write it for the runtime of --for too: a folder, or a .gguf file for llama.cpp")
      ->type_name("PATH");
  command.add_option("--dtype", flags.dtype, "Type of the written weights (default: as the source)")
      ->type_name("f32|f16|bf16|q8_0");
  command.add_option("--device", flags.device, "cpu or cuda[:i]")->capture_default_str()->type_name("DEVICE");
  add_kernel_option(command, flags.kernel);
  command.add_flag("--force", flags.force,
                   "Replace an existing OUT once the new one is complete; start an unfinished conversion over");
  command.add_flag("--resume", flags.resume, "Go on with an interrupted conversion to OUT");
  command.add_flag("--dry-run", flags.dry_run, "Print the plan and stop");
}

}  // namespace

void add_convert_options(CLI::App& command, ConvertFlags& flags) {
  add_recipe_options(command, flags);
  add_output_options(command, flags);
}

ConversionRecipe recipe_of_flags(const ConvertFlags& flags) {
  ConversionRecipe recipe = flags.recipe;
  if (flags.to.empty())
    throw UsageError("--to is missing: say what to convert to",
                     "for example --to gqa:4, --to mqa or --to mla --kv-budget 25%");
  parse_target(flags.to, recipe);
  recipe.method = flags.method == "auto" ? default_method(recipe.target) : flags.method;
  if (!flags.kv_budget.empty()) recipe.kv_budget = parse_budget(flags.kv_budget);
  recipe.kv_bits = parse_kv_bits(flags.kv_bits);
  recipe.per_layer = parse_per_layer(flags.per_layer);
  recipe.slots = parse_slots(slots_of(flags));
  if (!flags.layers.empty()) recipe.layers = parse_layers(flags.layers);
  for (const std::string& file : flags.calibration) {
    try {
      recipe.calibration.push_back(parse_corpus_spec(file));
    } catch (const UsageError& error) {
      throw UsageError(fmt::format("--calibration: {}", error.what()), error.help());
    }
  }
  if (flags.refit_option->count() > 0) recipe.refit = flags.refit ? RefitMode::on : RefitMode::off;
  transform(recipe.method);  // an unknown method is an error before the model is opened
  check_recipe(recipe);
  return recipe;
}

ModelWriterOptions output_of_flags(const ConvertFlags& flags) {
  std::vector<std::string> runtimes = known_runtimes();
  runtimes.insert(runtimes.end(), {"native", "auto"});
  require_choice("--for", flags.runtime, runtimes);
  const std::string runtime = runtime_of(flags), format = format_of(flags);
  require_choice("--format", format, {"hf", "gguf", "native", "hdf5", "safetensors"});
  if (!flags.dtype.empty()) require_choice("--dtype", flags.dtype, {"f32", "f16", "bf16", "q8_0"});
  // Blocks are for the exported file; what it is made from keeps its type.
  const bool blocks_later = flags.dtype == "q8_0" && flags.export_to.ends_with(".gguf");
  if (flags.dtype == "q8_0" && format != "gguf" && !blocks_later) {
    throw UsageError(fmt::format("--dtype q8_0 exists only in gguf files, not in {}", format),
                     "add --format gguf or choose f32, f16, bf16");
  }
  if (flags.runtime == "llama.cpp" && format != "gguf" && flags.export_to.empty() && !is_latent(flags)) {
    throw UsageError(
        fmt::format("--for llama.cpp and --format {} contradict each other: llama.cpp reads gguf files", format),
        "give one of them");
  }
  return {.output = flags.out,
          .format = format,
          .dtype = blocks_later ? "" : flags.dtype,
          .force = flags.force,
          .runtime = runtime == "native" ? "" : runtime};
}

ModelWriterOptions export_of_flags(const ConvertFlags& flags) {
  const std::string runtime = runtime_of(flags);
  if (runtime == "native") {
    throw UsageError("--export and --for native contradict each other: cinch reads OUT itself",
                     "leave one of them out");
  }
  const bool gguf = runtime == "llama.cpp";
  if (gguf != flags.export_to.ends_with(".gguf")) {
    throw UsageError(fmt::format("--export {} and --for {} contradict each other", flags.export_to, runtime),
                     "llama.cpp loads .gguf files, the others folders");
  }
  return {.output = flags.export_to,
          .format = gguf ? "gguf" : "hf",
          .dtype = flags.dtype,
          .force = flags.force,
          .runtime = runtime};
}

std::filesystem::path find_bundled_calibration() {
  namespace fs = std::filesystem;
  std::error_code fault;
  if (const char* data = std::getenv("CINCH_DATA");
      data != nullptr && fs::is_directory(fs::path(data) / "calibration", fault)) {
    return fs::path(data) / "calibration";
  }
  const fs::path program = fs::read_symlink("/proc/self/exe", fault);
  if (fault) return {};
  const fs::path shared = program.parent_path().parent_path() / "share/cinch/calibration";
  if (fs::is_directory(shared, fault)) return shared;
  for (fs::path folder = program.parent_path(); folder.has_relative_path(); folder = folder.parent_path()) {
    const fs::path examples = folder / "examples/calibration";
    if (fs::is_directory(examples, fault)) return examples;
  }
  return {};
}

}  // namespace cinch
