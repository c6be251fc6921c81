#include "convert/conversion_recipe.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <set>
#include <string_view>

#include "core/errors.h"

namespace cinch {
namespace {

constexpr int64_t kLatentLagContext = 8192, kLagWindows = 8;  // default lags: tokens, calibration windows

constexpr int64_t kMostHeads = 4096;
constexpr int64_t kMostLayers = 100000;

std::optional<int64_t> whole_number(std::string_view text) {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, fault] = std::from_chars(text.data(), end, value);
  if (fault != std::errc() || stop != end || text.empty() || value < 0) return std::nullopt;
  return value;
}

[[noreturn]] void refuse_layers(const std::string& text, const std::string& part) {
  throw UsageError(fmt::format("--layers {}: '{}' is neither a layer number nor a range", text, part),
                   "write layers as in --layers 4-27 or --layers 0,3,8-11 (the first layer is 0)");
}

std::vector<std::string> split_commas(const std::string& text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',') {
      parts.emplace_back();
    } else if (c != ' ') {
      parts.back() += c;
    }
  }
  return parts;
}

void check_calibration(const ConversionRecipe& recipe) {
  if (recipe.calibration_window < kLeastWindow) {
    throw UsageError(fmt::format("--calibration-window {}: a window has at least {} tokens", recipe.calibration_window,
                                 kLeastWindow));
  }
  if (recipe.calibration_tokens / recipe.calibration_window < 4) {
    throw UsageError(
        fmt::format("--calibration-tokens {}: fewer than 4 windows of {} tokens", recipe.calibration_tokens,
                    recipe.calibration_window),
        "some windows are kept out of every fit to choose the refit's damping: give more tokens or a shorter window");
  }
}

void check_fit(const ConversionRecipe& recipe) {
  if (recipe.refit_lambdas.empty()) throw UsageError("--refit-lambdas: the list is empty");
  for (const double lambda : recipe.refit_lambdas) {
    if (!(lambda > 0 && lambda < 1e6)) {
      throw UsageError(fmt::format("--refit-lambdas: {} is not a positive damping", lambda));
    }
  }
  if (recipe.fisher_rounds < 0 || recipe.fisher_rounds > 100) {
    throw UsageError(fmt::format("--fisher-rounds {}: expected 0 to 100", recipe.fisher_rounds));
  }
  if (!(recipe.lag_tail >= 0 && recipe.lag_tail <= 1)) {
    throw UsageError(fmt::format("--lag-tail {}: a share lies between 0 and 1", recipe.lag_tail));
  }
  if (recipe.lag_context < 0 || recipe.lag_context > (int64_t{1} << 24)) {
    throw UsageError(fmt::format("--lag-context {}: expected 0 (automatic) to {}", recipe.lag_context, 1 << 24));
  }
}

}  // namespace

void parse_target(const std::string& text, ConversionRecipe& recipe) {
  recipe.target = TargetKind::gqa;
  if (text == "mla") {
    recipe.target = TargetKind::mla;
    recipe.n_kv_heads = 0;
    return;
  }
  if (text == "mqa") {
    recipe.n_kv_heads = 1;
    return;
  }
  const std::string prefix = "gqa:";
  if (text.rfind(prefix, 0) == 0) {
    const std::optional<int64_t> heads = whole_number(std::string_view(text).substr(prefix.size()));
    if (heads && *heads >= 1 && *heads <= kMostHeads) {
      recipe.n_kv_heads = *heads;
      return;
    }
    throw UsageError(fmt::format("--to {}: '{}' is not a number of key-value heads", text, text.substr(prefix.size())),
                     "for example --to gqa:4");
  }
  throw UsageError(
      fmt::format("--to {}: unknown target; known are gqa:N (N shared key-value heads), mqa (one) and mla (a latent)",
                  text),
      text == "gqa" ? "say how many heads: --to gqa:4" : "for example --to gqa:4");
}

std::string target_text(const ConversionRecipe& recipe) {
  if (recipe.target == TargetKind::mla) return "mla";
  return recipe.n_kv_heads == 1 ? "mqa" : fmt::format("gqa:{}", recipe.n_kv_heads);
}

double parse_budget(const std::string& text) {
  const bool percent = !text.empty() && text.back() == '%';
  const std::string digits = percent ? text.substr(0, text.size() - 1) : text;
  char* end = nullptr;
  const double value = std::strtod(digits.c_str(), &end) / (percent ? 100 : 1);
  if (digits.empty() || *end != '\0' || !(value > 0 && value < 1)) {
    throw UsageError(fmt::format("--kv-budget {}: expected a share of the source's cache between 0 and 1", text),
                     "for example --kv-budget 25%");
  }
  return value;
}

int parse_kv_bits(const std::string& text) {
  for (const int bits : {16, 8, 4, 0}) {
    if (text == kv_bits_text(bits)) return bits;
  }
  throw UsageError(fmt::format("--kv-bits {}: known are 16, 8, 4 and auto", text));
}

std::string kv_bits_text(int bits) { return bits == 0 ? "auto" : std::to_string(bits); }

bool parse_per_layer(const std::string& text) {
  if (text == "uniform" || text == "sensitivity") return text == "sensitivity";
  throw UsageError(fmt::format("--per-layer {}: known are uniform and sensitivity", text));
}

SlotRule parse_slots(const std::string& text) {
  for (const SlotRule rule : {SlotRule::own, SlotRule::shared, SlotRule::geometric}) {
    if (text == slots_text(rule)) return rule;
  }
  throw UsageError(fmt::format("--slots {}: known are shared, geometric and own", text));
}

std::string slots_text(SlotRule rule) {
  switch (rule) {
    case SlotRule::own:
      return "own";
    case SlotRule::geometric:
      return "geometric";
    case SlotRule::shared:
      break;
  }
  return "shared";
}

std::vector<int64_t> parse_layers(const std::string& text) {
  std::set<int64_t> layers;
  for (const std::string& part : split_commas(text)) {
    const size_t dash = part.find('-');
    const std::optional<int64_t> first = whole_number(std::string_view(part).substr(0, dash));
    const std::optional<int64_t> last =
        dash == std::string::npos ? first : whole_number(std::string_view(part).substr(dash + 1));
    if (!first || !last || *first > *last || *last >= kMostLayers) refuse_layers(text, part);
    for (int64_t layer = *first; layer <= *last; ++layer) layers.insert(layer);
  }
  return {layers.begin(), layers.end()};
}

std::string layers_text(const std::vector<int64_t>& layers) {
  std::string text;
  for (size_t i = 0; i < layers.size();) {
    size_t end = i + 1;
    while (end < layers.size() && layers[end] == layers[end - 1] + 1) ++end;
    if (!text.empty()) text += ",";
    text += end - i == 1 ? fmt::format("{}", layers[i]) : fmt::format("{}-{}", layers[i], layers[end - 1]);
    i = end;
  }
  return text;
}

std::string refit_text(RefitMode mode) {
  switch (mode) {
    case RefitMode::on:
      return "on";
    case RefitMode::off:
      return "off";
    case RefitMode::automatic:
      break;
  }
  return "automatic";
}

Json recipe_json(const ConversionRecipe& recipe) {
  Json files = Json::array();
  for (const CorpusSpec& spec : recipe.calibration) {
    files.push_back({{"file", spec.path.filename().string()}, {"weight", spec.weight}});
  }
  return {{"to", target_text(recipe)},
          {"rank", recipe.rank},
          {"rope-dim", recipe.rope_dim},
          {"kv-budget", recipe.kv_budget},
          {"kv-bits", kv_bits_text(recipe.kv_bits)},
          {"per-layer", recipe.per_layer ? "sensitivity" : "uniform"},
          {"slots", slots_text(recipe.slots)},
          {"method", recipe.method},
          {"layers", layers_text(recipe.layers)},
          {"calibration", files},
          {"calibration-tokens", recipe.calibration_tokens},
          {"calibration-window", recipe.calibration_window},
          {"refit", refit_text(recipe.refit)},
          {"refit-lambdas", recipe.refit_lambdas},
          {"fisher-rounds", recipe.fisher_rounds},
          {"lag-tail", recipe.lag_tail},
          {"lag-context", recipe.lag_context},
          {"search-groups", recipe.search_groups},
          {"seed", recipe.seed}};
}

namespace {

void check_target(const ConversionRecipe& recipe) {
  const bool sizes = recipe.rank != 0 || recipe.rope_dim != -1;
  if (recipe.target == TargetKind::gqa) {
    if (recipe.n_kv_heads < 1) {
      throw UsageError("--to is missing: say what to convert to", "for example --to gqa:4, --to mqa or --to mla");
    }
    if (sizes || recipe.kv_budget > 0 || recipe.kv_bits != 16 || recipe.per_layer || recipe.slots != SlotRule::shared) {
      throw UsageError(
          fmt::format("--rank, --rope-dim, --kv-budget, --kv-bits, --per-layer and --slots have no meaning for --to {}",
                      target_text(recipe)),
          "--to mla has a rank; the cache of shared heads is set by their number");
    }
    return;
  }
  if (sizes && recipe.kv_budget > 0) {
    throw UsageError("--kv-budget contradicts --rank and --rope-dim", "give the budget or the sizes");
  }
  if (!sizes && !(recipe.kv_budget > 0)) {
    throw UsageError("--to mla: how small is not said", "--kv-budget 25%, or --rank R --rope-dim D");
  }
  if (recipe.per_layer && recipe.method != "weighted") {
    throw UsageError(fmt::format("--per-layer sensitivity: --method {} has one rank for all layers", recipe.method),
                     "it belongs to --method weighted");
  }
  if (recipe.slots != SlotRule::shared && recipe.method != "weighted") {
    throw UsageError(fmt::format("--slots {}: --method {} has its own", slots_text(recipe.slots), recipe.method),
                     "it belongs to --method weighted");
  }
  if (sizes && recipe.kv_bits == 0) {
    throw UsageError("--kv-bits auto chooses sizes from a budget, --rank and --rope-dim set them",
                     "give --kv-budget, or a number of bits");
  }
  if (sizes && (recipe.rank < 1 || recipe.rope_dim < 0)) {
    throw UsageError("--rank and --rope-dim belong together", "for example --rank 80 --rope-dim 32");
  }
}

}  // namespace

ConversionRecipe with_target_defaults(ConversionRecipe recipe, int64_t context) {
  const bool mla = recipe.target == TargetKind::mla;
  if (recipe.calibration_tokens == 0) recipe.calibration_tokens = mla ? 36864 : 18432;
  if (recipe.calibration_window == 0) {
    recipe.calibration_window = mla ? 1024 : 512;
    if (context > 0) recipe.calibration_window = std::min(recipe.calibration_window, context);
  }
  if (recipe.lag_context == 0) {
    // Latents choose what stays rotated by the lags, and would keep what the model's own context never needs. Merged
    // heads stay rotated whole: for them longer lags are a little better (tinyllama3m to one head: KL .430, capped
    // .439).
    recipe.lag_context = mla ? kLatentLagContext : kLagWindows * recipe.calibration_window;
    if (mla && context > 0) recipe.lag_context = std::min(recipe.lag_context, context);
  }
  return recipe;
}

void check_recipe(const ConversionRecipe& asked) {
  const ConversionRecipe recipe = with_target_defaults(asked);
  check_target(recipe);
  check_calibration(recipe);
  check_fit(recipe);
}

}  // namespace cinch
