#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <sstream>

#include "convert/provenance.h"
#include "core/files.h"
#include "model/mixed_layers.h"
#include "model/model_summary.h"

namespace cinch {
namespace {

constexpr uint64_t kLargestCard = uint64_t{1} << 22;

std::string trimmed(const std::string& text) {
  const char* blank = " \t\r\"'";
  const size_t begin = text.find_first_not_of(blank);
  if (begin == std::string::npos) return {};
  return text.substr(begin, text.find_last_not_of(blank) - begin + 1);
}

/// `license:` of the YAML block at the top of a model card.
std::string licence_in_card(const std::string& card) {
  std::istringstream lines(card);
  std::string line;
  if (!std::getline(lines, line) || trimmed(line) != "---") return {};
  while (std::getline(lines, line) && trimmed(line) != "---") {
    if (line.rfind("license:", 0) == 0) return trimmed(line.substr(8));
  }
  return {};
}

std::string calibration_text(const CalibrationSet& calibration) {
  if (calibration.synthetic) return "none (this method fits nothing)";
  std::string names;
  for (const CorpusSpec& spec : calibration.sources) {
    names += (names.empty() ? "" : ", ") + fmt::format("{} (weight {})", spec.path.filename().string(), spec.weight);
  }
  return fmt::format("{} windows of {} tokens from {}{}", calibration.windows.size(0), calibration.windows.size(1),
                     calibration.bundled ? "the mixture that comes with cinch: " : "", names);
}

std::string loss_section(const HeldOutLoss& loss) {
  if (loss.tokens == 0) return "Not measured: there was no text at hand. `cinch eval` measures it.\n";
  return fmt::format(
      "On {} calibration tokens that no fit and no choice has seen (a hint from few tokens; `cinch eval` measures "
      "properly):\n\n"
      "| | original | converted |\n|---|---|---|\n"
      "| loss, nats per token | {:.4f} | {:.4f} |\n| perplexity | {:.3f} | {:.3f} |\n\n"
      "Mean KL(original, converted): {:.4f} nats per token.\n",
      loss.tokens, loss.nll_before, loss.nll_after, std::exp(loss.nll_before), std::exp(loss.nll_after), loss.kl);
}

std::string layer_table(const std::vector<Json>& reports) {
  std::string table =
      "| layer | key energy kept | value energy kept | output error before refit | output error "
      "|\n|---|---|---|---|---|\n";
  for (const Json& report : reports) {
    table += fmt::format("| {} | {:.4f} | {:.4f} | {:.4f} | {:.4f} |\n", report["layer"].get<int64_t>(),
                         report["kept_energy_k"].get<double>(), report["kept_energy_v"].get<double>(),
                         report["output_error_before_refit"].get<double>(), report["output_error"].get<double>());
  }
  return table;
}

}  // namespace

std::string licence_of(const ModelSource& source) {
  const std::filesystem::path card = source.path() / "README.md";
  if (std::filesystem::is_directory(source.path()) && std::filesystem::exists(card)) {
    return licence_in_card(read_text(card, kLargestCard));
  }
  const auto& metadata = source.tensors().metadata();
  const auto found = metadata.find("general.license");
  return found == metadata.end() ? "" : found->second;
}

std::string model_card(const ConversionRecord& record) {
  const ConversionPlan& plan = record.plan;
  const std::string licence = licence_of(record.source);
  const std::string name = record.identity["source"]["name"].get<std::string>();
  std::string card = "---\n";
  if (!licence.empty()) card += fmt::format("license: {}\n", licence);
  card +=
      fmt::format("{}tags:\n- cinch\n- {}\n---\n", has_latent_layers(plan.target) ? "" : "library_name: transformers\n",
                  plan.recipe.target == TargetKind::mla ? "mla" : "gqa");
  card += fmt::format("# {} with a smaller KV cache ({})\n\n", name, target_text(plan.recipe));
  card += fmt::format(
      "Converted from `{}` by cinch {}; `cinch.json` records the recipe and the digests of all inputs and outputs.\n\n",
      name, CINCH_VERSION);
  card += "| | source | converted |\n|---|---|---|\n";
  card +=
      fmt::format("| key-value heads per layer | {} | {} |\n", kv_heads_text(plan.source), kv_heads_text(plan.target));
  card += fmt::format("| KV cache, bytes per token (16-bit) | {} | {} ({:.1f} %) |\n", plan.source.kv_bytes_per_token(),
                      plan.target.kv_bytes_per_token(), 100 * plan.kv_ratio);
  card += fmt::format("| parameters | {} | {} |\n\n", plan.source_parameters, plan.target_parameters);
  card += fmt::format("Method: `{}`, output refit: {}. Layers converted: {} of {}.\n\n", plan.recipe.method,
                      refit_text(plan.recipe.refit), plan.recipe.layers.size(), plan.source.n_layers);
  card += fmt::format("Calibration: {}.\n\n", calibration_text(record.calibration));
  card += "## Measured loss\n\n" + loss_section(record.loss);
  card += fmt::format(
      "\nThe written files were read back: {} new tensors are as computed, and the logits of {} tokens differ by at "
      "most {:.2g}.\n",
      record.verification.tensors, record.verification.tokens, record.verification.max_abs_logit_difference);
  card += "\n## Layers\n\n" + layer_table(record.layer_reports);
  if (!plan.warnings.empty()) card += "\n## Notes\n\n";
  for (const std::string& warning : plan.warnings) card += fmt::format("- {}\n", warning);
  card += fmt::format("\n## Licence\n\n{}\n",
                      licence.empty() ? "The source does not name one; the source's terms apply to this model too."
                                      : fmt::format("{}, carried over from the source.", licence));
  return card;
}

}  // namespace cinch
