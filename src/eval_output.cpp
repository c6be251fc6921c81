#include "src/eval_output.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "src/output.h"

namespace cinch {
namespace {

std::string plus_minus(double value, double error, int digits) {
  return std::isnan(error) ? fmt::format("{:.{}f}", value, digits)
                           : fmt::format("{:.{}f} ± {:.{}f}", value, digits, error, digits);
}

std::string heading(const PerplexityResult& ppl) {
  return fmt::format("{}: {} windows, {} tokens scored\n\n", ppl.protocol, ppl.windows, ppl.tokens);
}

std::string throughput(const EvalReport& report) {
  return fmt::format("\n{:.1f} s, {:.0f} tokens/s\n", report.seconds, report.tokens_per_second);
}

std::string perplexity_cell(const EvalRow& row) {
  return plus_minus(row.perplexity.value, row.perplexity.stderr_value, 4);
}

std::string bytes_cell(const EvalRow& row) { return fmt::format("{:.0f}", row.kv_bytes_per_token); }

}  // namespace

std::string eval_text(const EvalReport& report) {
  const EvalRow& model = report.first_model();
  std::vector<std::vector<std::string>> rows = {{"model", "perplexity", "KV bytes/token (16 bits)"}};
  for (const EvalRow& row : report.rows) rows.push_back({row.model, perplexity_cell(row), bytes_cell(row)});
  std::string text = heading(model.perplexity) + format_table(rows);
  if (model.fidelity) {
    const FidelityReport& f = *model.fidelity;
    text += fmt::format(
        "\nKL(reference || model)  mean {} nats, median {:.6f}, 99th percentile {:.5f}, max {:.4f}: class {}\n",
        plus_minus(f.kl_mean, f.kl_stderr, 6), f.kl_median, f.kl_p99, f.kl_max, f.yardstick);
    text += fmt::format("top-1 agreement         {} %\n", plus_minus(100 * f.top1_agreement, 100 * f.top1_stderr, 2));
    text += fmt::format("true token probability  mean change {:+.5f}, RMS {:.5f}\n", f.true_probability_change_mean,
                        f.true_probability_change_rms);
    text += fmt::format("cache                   {:.2f} % of the reference's\n", 100 * model.kv_ratio);
  }
  return text + throughput(report);
}

std::string eval_table_text(const EvalReport& report) {
  const bool compared = report.reference() != nullptr;
  std::vector<std::vector<std::string>> rows = {{"model", "cache", "KV bytes/token", "% of 16 bits", "perplexity"}};
  if (compared) rows[0].insert(rows[0].end(), {"KL (nats)", "top-1 agreement %"});
  for (const EvalRow& row : report.rows_by_bytes()) {
    rows.push_back({row.model + (row.of_reference ? " (reference)" : ""), row.cache.name(), bytes_cell(row),
                    fmt::format("{:.2f}", 100 * row.kv_ratio), perplexity_cell(row)});
    if (!compared) continue;
    const FidelityReport* f = row.fidelity ? &*row.fidelity : nullptr;
    rows.back().push_back(f != nullptr ? plus_minus(f->kl_mean, f->kl_stderr, 6) : "");
    rows.back().push_back(f != nullptr ? plus_minus(100 * f->top1_agreement, 100 * f->top1_stderr, 2) : "");
  }
  const bool emulated =
      std::any_of(report.rows.begin(), report.rows.end(), [](const EvalRow& row) { return row.cache.rounds(); });
  const std::string whose = compared ? "the reference's" : report.first_model().model + "'s";
  return heading(report.first_model().perplexity) + format_table(rows) +
         fmt::format("\n%: of {} 16-bit cache.{}\n", whose,
                     emulated ? " Caches of fewer bits are emulated (docs/protocols.md)." : "") +
         throughput(report);
}

}  // namespace cinch
