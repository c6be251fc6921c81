// What an evaluation found: one row per model and cache precision, all on the same windows.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "attention/cache_precision.h"
#include "core/json.h"
#include "eval/perplexity.h"

namespace cinch {

struct EvalRow {
  std::string model;
  bool of_reference = false;
  CachePrecision cache;
  /// Measured from allocated caches that hold 16-bit numbers; below 16 bits times the share that packed entries take.
  double kv_bytes_per_token = 0;
  double kv_ratio = 1.0;        // against the 16-bit cache of the reference, or of the first model without one
  double bits_per_number = 16;  // scales and zeros included, over all numbers of a token
  PerplexityResult perplexity = {};
  std::optional<FidelityReport> fidelity = std::nullopt;  // to the reference at 16 bits; absent in that row itself
};

struct EvalReport {
  /// In the order of the evaluation: the reference, then the models, each at 16 bits first.
  std::vector<EvalRow> rows;
  double seconds = 0, tokens_per_second = 0;  // tokens through all models per second of the whole run

  /// At 16 bits; null without a reference.
  const EvalRow* reference() const;
  /// The first model at 16 bits.
  const EvalRow& first_model() const;
  /// By bytes, most first; equal ones stay in order.
  std::vector<EvalRow> rows_by_bytes() const;
};

/// The report of one model at 16 bits: `perplexity`, `reference_perplexity`, `fidelity`, `cache` (docs/interface.md).
Json single_json(const EvalReport& report);
/// The report of several models or precisions: `protocol`, and `rows` by bytes.
Json table_json(const EvalReport& report);

}  // namespace cinch
