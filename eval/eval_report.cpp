#include "eval/eval_report.h"

#include <algorithm>
#include <cmath>

namespace cinch {
namespace {

Json row_json(const EvalRow& row) {
  Json json = {{"model", row.model},
               {"cache", row.cache.name()},
               {"bits_per_number", row.bits_per_number},
               {"kv_bytes_per_token", row.kv_bytes_per_token},
               {"kv_ratio", row.kv_ratio},
               {"perplexity", row.perplexity.to_json()}};
  if (row.fidelity) json["fidelity"] = row.fidelity->to_json();
  return json;
}

void add_throughput(Json& json, const EvalReport& report) {
  json["tasks"] = Json::array();
  json["seconds"] = report.seconds;
  json["tokens_per_second"] = report.tokens_per_second;
}

}  // namespace

const EvalRow* EvalReport::reference() const {
  return !rows.empty() && rows.front().of_reference ? &rows.front() : nullptr;
}

const EvalRow& EvalReport::first_model() const {
  return *std::find_if(rows.begin(), rows.end(), [](const EvalRow& row) { return !row.of_reference; });
}

std::vector<EvalRow> EvalReport::rows_by_bytes() const {
  std::vector<EvalRow> sorted = rows;
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const EvalRow& a, const EvalRow& b) { return a.kv_bytes_per_token > b.kv_bytes_per_token; });
  return sorted;
}

Json single_json(const EvalReport& report) {
  const EvalRow& model = report.first_model();
  Json json = {{"perplexity", model.perplexity.to_json()}};
  if (const EvalRow* reference = report.reference()) json["reference_perplexity"] = reference->perplexity.to_json();
  if (model.fidelity) json["fidelity"] = model.fidelity->to_json();
  json["cache"] = {{"kv_bytes_per_token", std::llround(model.kv_bytes_per_token)}, {"kv_ratio", model.kv_ratio}};
  add_throughput(json, report);
  return json;
}

Json table_json(const EvalReport& report) {
  Json json = {{"protocol", report.first_model().perplexity.protocol}, {"rows", Json::array()}};
  for (const EvalRow& row : report.rows_by_bytes()) json["rows"].push_back(row_json(row));
  add_throughput(json, report);
  return json;
}

}  // namespace cinch
