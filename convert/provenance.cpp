#include "convert/provenance.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <set>

#include "core/digest.h"

namespace cinch {
namespace {

/// The tensor files and what decides how they are read.
std::vector<std::filesystem::path> source_files(const ModelSource& source) {
  std::set<std::filesystem::path> files;
  for (const std::filesystem::path& file : source.tensors().files()) files.insert(file);
  if (std::filesystem::is_directory(source.path())) {
    for (const char* name : {"config.json", "tokenizer.json", "tokenizer.model", "cinch.json"}) {
      if (std::filesystem::exists(source.path() / name)) files.insert(source.path() / name);
    }
  }
  return {files.begin(), files.end()};
}

std::string last_name(const std::filesystem::path& path) {
  const std::filesystem::path normal = path.lexically_normal();
  return (normal.has_filename() ? normal : normal.parent_path()).filename().string();
}

/// Names of files may be any bytes, JSON holds UTF-8.
Json with_valid_text(const Json& json) {
  return Json::parse(json.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace

Json HeldOutLoss::to_json() const {
  if (tokens == 0) return nullptr;
  return {{"tokens", tokens}, {"nll_before", nll_before}, {"nll_after", nll_after}, {"kl", kl}};
}

Json VerificationResult::to_json() const {
  return {{"max_abs_logit_difference", max_abs_logit_difference},
          {"logit_rms", logit_rms},
          {"tokens", tokens},
          {"tensors", tensors}};
}

Json source_identity(const ModelSource& source) {
  Json files = Json::object();
  for (const std::filesystem::path& file : source_files(source)) {
    files[file.filename().string()] = {{"bytes", std::filesystem::file_size(file)},
                                       {"sha256", sha256_hex_of_file(file)}};
  }
  return with_valid_text({{"name", last_name(source.path())}, {"format", source.tensors().format()}, {"files", files}});
}

Json run_identity(const ModelSource& source, const ConversionPlan& plan, const CalibrationSet& calibration,
                  const ModelWriterOptions& output, const std::string& device) {
  return with_valid_text(
      {{"version", CINCH_VERSION},
       {"recipe", recipe_json(plan.recipe)},
       {"source", source_identity(source)},
       {"calibration", calibration.provenance()},
       {"output", {{"format", output.format}, {"dtype", output.dtype}, {"shard_bytes", output.shard_bytes}}},
       {"threads", at::get_num_threads()},
       {"device", device}});
}

Json provenance_json(const ConversionRecord& record) {
  const ConversionPlan& plan = record.plan;
  Json layers = Json::array(), warnings = Json::array();
  for (const Json& report : record.layer_reports) layers.push_back(report);
  for (const std::string& warning : plan.warnings) warnings.push_back(warning);
  Json result = {{"cinch", CINCH_VERSION}, {"command", "convert"}};
  result.update(record.identity);
  result["licence"] = licence_of(record.source);
  result["kv_bytes_per_token"] = {{"source", plan.source.kv_bytes_per_token()},
                                  {"target", plan.target.kv_bytes_per_token()}};
  result["kv_ratio"] = plan.kv_ratio;
  result["layers"] = layers;
  result["held_out"] = record.loss.to_json();
  result["verification"] = record.verification.to_json();
  result["warnings"] = warnings;
  result["digests"] = Json(record.tensor_digests);
  return with_valid_text(result);
}

}  // namespace cinch
