// What the user asked for: every field is a flag of `cinch convert` and a key of a recipe file. No torch here.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/json.h"
#include "text/corpus.h"

namespace cinch {

constexpr int64_t kLeastWindow = 8;  // tokens of a calibration window

enum class TargetKind { gqa, mla };  // mqa is gqa with one head
/// Rotary slots of latents: each layer's best, one list for all layers (which Hugging Face can load), or one whose
/// frequencies come from a base alone (which llama.cpp and vLLM need).
enum class SlotRule { own, shared, geometric };
enum class RefitMode {
  automatic,
  on,
  off
};  // automatic: what the method does by default (on for aligned and weighted, off for the baselines)

struct ConversionRecipe {
  TargetKind target = TargetKind::gqa;
  int64_t n_kv_heads = 0;               // target heads, from "gqa:N" or "mqa"
  int64_t rank = 0, rope_dim = -1;      // mla: R and Dr; 0 and -1: chosen from kv_budget
  double kv_budget = 0;                 // mla: share of the bytes of the source's 16-bit cache; 0: not given
  int kv_bits = 16;                     // mla: of a cached number as it will be served, 16, 8 or 4; 0: chosen
  bool per_layer = false;               // mla: ranks differ between layers, as much in all
  SlotRule slots = SlotRule::shared;    // mla, weighted
  std::string method = "aligned";       // one of transforms() for this target
  std::vector<CorpusSpec> calibration;  // empty: the bundled mixture
  int64_t calibration_tokens = 0;       // in all: an eighth of the windows only measures; 0: as measured to serve the
  int64_t calibration_window = 0;       // target (gqa 18432 in windows of 512, mla 36864 in windows of 1024)
  std::vector<int64_t> layers;          // converted layers, sorted; empty = all (a stock class needs all layers alike)
  RefitMode refit = RefitMode::automatic;
  std::vector<double> refit_lambdas = {1e-3, 1e-2, 1e-1};  // chosen among by the validation windows
  int64_t fisher_rounds = 2;                               // rounds of (key refit, query refit)
  double lag_tail = 0.25;                                  // share of the 1/(D+1) tail in the lag weights
  int64_t lag_context = 0;    // furthest lag weighted; 0: 8 calibration windows; mla: 8192 or the context
  bool search_groups = true;  // swap descent over head groups
  uint64_t seed = 0;
};

/// "gqa:4" / "mqa" / "mla". Throws UsageError naming what is known.
void parse_target(const std::string& text, ConversionRecipe& recipe);
/// The spelling that `parse_target` reads: "gqa:4", "mqa", "mla".
std::string target_text(const ConversionRecipe& recipe);

/// "25%" or "0.25" -> share of the source's 16-bit cache. Throws UsageError unless it lies between 0 and 1.
double parse_budget(const std::string& text);

/// "16", "8", "4", "auto" (0). Throws UsageError.
int parse_kv_bits(const std::string& text);
std::string kv_bits_text(int bits);
/// "uniform" -> false, "sensitivity" -> true. Throws UsageError.
bool parse_per_layer(const std::string& text);

/// "own", "shared", "geometric". Throws UsageError.
SlotRule parse_slots(const std::string& text);
std::string slots_text(SlotRule rule);

/// "4-27", "0,3,8-11" -> sorted layer numbers without repeats. Throws UsageError on anything else.
std::vector<int64_t> parse_layers(const std::string& text);
/// The shortest spelling that `parse_layers` reads; empty for an empty list.
std::string layers_text(const std::vector<int64_t>& layers);

std::string refit_text(RefitMode mode);  // "automatic", "on", "off"

/// Every field under its recipe key: what provenance records and what a resumed run is compared with. Calibration files
/// appear by file name and weight; their content is pinned by digests beside the recipe.
Json recipe_json(const ConversionRecipe& recipe);

/// The recipe with what it leaves to the target filled in; windows no longer than the model's context, if known.
ConversionRecipe with_target_defaults(ConversionRecipe recipe, int64_t context = 0);

/// Throws UsageError on a field whose value no model could use (calibration shorter than a window, negative damping,
/// ...).
void check_recipe(const ConversionRecipe& recipe);

}  // namespace cinch
