#include "src/bench_output.h"

#include <fmt/format.h>

#include <cmath>

#include "src/output.h"

namespace cinch {
namespace {

using Table = std::vector<std::vector<std::string>>;

std::string heading(const BenchRun& run) {
  std::string text = fmt::format("{}: copy {:.1f} GB/s (read + written)", run.device, run.copy_bytes_per_second * 1e-9);
  if (run.specified_bytes_per_second > 0)
    text += fmt::format(", memory specified for {:.0f} GB/s", run.specified_bytes_per_second * 1e-9);
  return text + "\n\n";
}

std::string share(double speed, double of) { return of > 0 ? fmt::format("{:.1f} %", 100 * speed / of) : "-"; }

std::string error_text(double error) {
  if (error < 0) return "-";
  return std::isfinite(error) ? fmt::format("{:.1e}", error) : "not finite";
}

std::string milliseconds(double seconds) { return fmt::format("{:.3f}", seconds * 1e3); }

/// What stands behind a row without a time.
std::string note(const std::string& status, const std::string& reason) {
  return reason.empty() ? status : fmt::format("{}: {}", status, reason);
}

std::string notes_text(const std::vector<std::string>& notes) {
  if (notes.empty()) return {};
  return fmt::format("\nNot measured:\n  {}\n", fmt::join(notes, "\n  "));
}

std::string ending(const BenchRun& run) {
  return fmt::format("\n{:.1f} s{}\n", run.seconds, run.interrupted ? ", interrupted" : "");
}

Json common_json(const BenchRun& run) {
  Json json = {{"program", "cinch bench " + run.what},
               {"device", run.device},
               {"driver", run.driver},
               {"commit", run.commit},
               {"copy_gb_per_s", run.copy_bytes_per_second * 1e-9}};
  if (run.specified_bytes_per_second > 0) json["specification_gb_per_s"] = run.specified_bytes_per_second * 1e-9;
  json["seconds"] = run.seconds;
  json["interrupted"] = run.interrupted;
  return json;
}

/// The first row of the same batch and context that has a time: what the others are compared with.
const ModelBenchRow* first_of_case(const std::vector<ModelBenchRow>& rows, const ModelBenchRow& row) {
  for (const ModelBenchRow& other : rows) {
    if (other.batch == row.batch && other.context == row.context && other.status == "ok") return &other;
  }
  return nullptr;
}

std::vector<std::string> model_cells(const BenchRun& run, const std::vector<ModelBenchRow>& rows,
                                     const ModelBenchRow& row) {
  std::vector<std::string> cells = {fmt::format("{} x {}", row.batch, row.context),
                                    row.model,
                                    name_of(row.format),
                                    fmt::format("{:.0f}", row.kv_bytes_per_token),
                                    human_bytes(static_cast<uint64_t>(row.cache_bytes)),
                                    human_bytes(static_cast<uint64_t>(row.weight_bytes))};
  if (row.status != "ok") {
    cells.push_back(row.status);
    return cells;
  }
  const double speed = static_cast<double>(row.cache_bytes + row.read_weight_bytes) / row.seconds;
  cells.push_back(milliseconds(row.seconds));
  cells.push_back(fmt::format("{:.1f}", row.tokens_per_second()));
  cells.push_back(fmt::format("{:.2f}", first_of_case(rows, row)->seconds / row.seconds));
  cells.push_back(share(speed, run.copy_bytes_per_second));
  cells.push_back(row.kernel + (row.graph ? ", graph" : ""));
  return cells;
}

}  // namespace

std::string kernel_table(const BenchRun& run, const std::vector<KernelBenchRow>& rows) {
  Table table = {{"case", "kernel", "layout", "us", "cache", "GB/s", "of copy", "of spec", "error"}};
  std::vector<std::string> notes;
  for (const KernelBenchRow& row : rows) {
    if (row.status != "ok") {
      notes.push_back(fmt::format("{}, {}: {}{}", text_of(row.decode), row.kernel, note(row.status, row.reason),
                                  row.error >= 0 ? " (error " + error_text(row.error) + ")" : ""));
      continue;
    }
    const double speed = static_cast<double>(row.cache_bytes) / row.seconds;
    table.push_back({text_of(row.decode), row.kernel, row.layout, fmt::format("{:.2f}", row.seconds * 1e6),
                     human_bytes(static_cast<uint64_t>(row.cache_bytes)), fmt::format("{:.1f}", speed * 1e-9),
                     share(speed, run.copy_bytes_per_second), share(speed, run.specified_bytes_per_second),
                     error_text(row.error)});
  }
  return heading(run) + format_table(table) + notes_text(notes) + ending(run);
}

std::string model_table(const BenchRun& run, const std::vector<ModelBenchRow>& rows) {
  Table table = {{"batch x context", "model", "cache", "bytes/token", "cache bytes", "weights", "ms/step", "tokens/s",
                  "speed-up", "of copy", "attention"}};
  std::vector<std::string> notes;
  std::vector<bool> shown(rows.size(), false);
  for (size_t first = 0; first < rows.size(); ++first) {
    for (size_t i = first; i < rows.size(); ++i) {
      if (shown[i] || rows[i].batch != rows[first].batch || rows[i].context != rows[first].context) continue;
      shown[i] = true;
      table.push_back(model_cells(run, rows, rows[i]));
      if (rows[i].reason.empty()) continue;
      notes.push_back(fmt::format("{} at {} x {}: {}", rows[i].model, rows[i].batch, rows[i].context,
                                  note(rows[i].status, rows[i].reason)));
    }
  }
  return heading(run) + format_table(table) + notes_text(notes) + ending(run);
}

Json bench_json(const BenchRun& run, const std::vector<KernelBenchRow>& rows, const KernelBenchOptions& options) {
  Json json = common_json(run);
  json["rows"] = Json::array();
  for (const KernelBenchRow& row : rows) json["rows"].push_back(row_json(row, options));
  return json;
}

Json bench_json(const BenchRun& run, const std::vector<ModelBenchRow>& rows, const ModelBenchOptions& options) {
  Json json = common_json(run);
  json["rows"] = Json::array();
  for (const ModelBenchRow& row : rows) json["rows"].push_back(row_json(row, options));
  return json;
}

}  // namespace cinch
