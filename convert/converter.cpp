#include "convert/converter.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <fstream>

#include "convert/conversion_run.h"
#include "convert/layer_findings.h"
#include "convert/layer_problems.h"
#include "convert/output_check.h"
#include "convert/partial_folder.h"
#include "convert/provenance.h"
#include "convert/transform.h"
#include "core/allocator.h"
#include "core/errors.h"
#include "core/files.h"
#include "core/progress.h"

namespace cinch {
namespace {

constexpr int64_t kCheckedTokens = 64;
constexpr const char* kResumeHelp = "the finished layers are kept: repeat the command with --resume to go on";

/// Most memory this process has held so far.
int64_t peak_memory_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stoll(line.substr(6)) * 1024;
  }
  struct rusage usage {};
  ::getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

std::filesystem::path clean_path(const std::filesystem::path& path) {
  const std::filesystem::path absolute = std::filesystem::absolute(path).lexically_normal();
  return absolute.has_filename() ? absolute : absolute.parent_path();
}

uint64_t bytes_in(const std::filesystem::path& folder) {
  uint64_t total = 0;
  std::error_code fault;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder, fault)) {
    if (entry.is_regular_file(fault)) total += entry.file_size(fault);
  }
  return total;
}

void check_output_free(const std::filesystem::path& output, const ConvertOptions& options) {
  if (!std::filesystem::exists(output) || options.output.force) return;
  if (std::filesystem::is_directory(output) && std::filesystem::is_empty(output)) return;
  throw UsageError(fmt::format("{} exists already", output.string()), "give --force to replace it, or another output");
}

/// Before anything is computed: whoever forgot --resume or --force should not wait for digests first.
void check_partial(const std::filesystem::path& output, const ConvertOptions& options) {
  if (options.resume || options.output.force || PartialFolder::recorded_identity(output).is_null()) return;
  throw UsageError(
      fmt::format("{}: an unfinished conversion to this output is here", PartialFolder::path_for(output).string()),
      "go on with it (--resume) or start over (--force)");
}

void check_disk(const std::filesystem::path& output, const ConversionPlan& plan) {
  const uint64_t held = bytes_in(PartialFolder::path_for(output));
  const uint64_t needed =
      static_cast<uint64_t>(plan.disk_bytes) - std::min(held, static_cast<uint64_t>(plan.disk_bytes));
  const uint64_t free = free_disk_bytes(output);
  if (free >= needed) return;
  throw ResourceError(fmt::format("{}: the conversion needs {} bytes of disk, {} are free",
                                  output.parent_path().string(), needed, free),
                      "free some space or choose another target");
}

/// True when `output` is the finished result of a run with this identity.
bool is_finished(const std::filesystem::path& output, const Json& identity) {
  const std::filesystem::path file = output / "cinch.json";
  if (!std::filesystem::exists(file)) return false;
  const Json recorded = parse_json(read_text(file), file.string());
  return std::all_of(identity.items().begin(), identity.items().end(), [&](const auto& item) {
    return recorded.contains(item.key()) && recorded[item.key()] == item.value();
  });
}

class Conversion {
 public:
  Conversion(std::shared_ptr<ModelSource> source, const ConversionRecipe& recipe, const ConvertOptions& options)
      : source_(std::move(source)),
        options_(options),
        output_(clean_path(options.output.output)),
        started_(std::chrono::steady_clock::now()) {
    options_.output.output = output_;
    plan_ = plan_conversion(*source_, recipe, options_.output);
  }

  ConvertReport run() {
    const bool published = options_.resume && PartialFolder::was_published(output_);
    if (!options_.resume) check_output_free(output_, options_);
    check_partial(output_, options_);
    for (const std::string& warning : plan_.warnings) {
      if (warning != source_->quality_note()) log_warning(warning);  // said when the model was opened
    }
    calibration_ = load_calibration(*source_, plan_.recipe, options_.bundled_calibration,
                                    transform(plan_.recipe.method).needs_calibration(plan_.recipe));
    identity_ = run_identity(*source_, plan_, calibration_, options_.output, options_.device.str());
    check_statistics();
    if (options_.resume) {
      if (published || (PartialFolder::recorded_identity(output_).is_null() && is_finished(output_, identity_)))
        return finish_published();
      check_output_free(output_, options_);
    }
    check_disk(output_, plan_);
    return convert();
  }

 private:
  /// Before hours of work: a file that does not fit, or none where it could be written.
  void check_statistics() const {
    if (options_.statistics.empty()) return;
    if (!transform(plan_.recipe.method).uses_moments(plan_.recipe)) {
      throw UsageError(fmt::format("--statistics: --method {} uses none", plan_.recipe.method),
                       "they belong to --to mla with --method weighted or balanced-pca");
    }
    if (std::filesystem::exists(options_.statistics)) MomentFile(options_.statistics, moment_identity(identity_));
  }

  /// Of the layers to convert, measured first where there are none; nothing for methods that use none.
  std::unique_ptr<MomentFile> prepare_moments(const PartialFolder& partial) const {
    if (!transform(plan_.recipe.method).uses_moments(plan_.recipe) || !has_unsolved_layers(plan_, partial)) return {};
    const Json identity = moment_identity(identity_);
    const std::filesystem::path path = options_.statistics.empty() ? partial.moment_file() : options_.statistics;
    if (!std::filesystem::exists(path)) {
      measure_moments(source_, plan_, calibration_, identity, path, options_.device);
    } else if (!options_.statistics.empty()) {
      log_info(fmt::format("moments from {}", path.string()));
    }
    auto moments = std::make_unique<MomentFile>(path, identity);
    for (const int64_t layer : plan_.recipe.layers) {
      if (moments->has_layer(layer)) continue;
      throw UsageError(fmt::format("{}: layer {} was not measured", path.string(), layer),
                       "measure again with another file name for --statistics");
    }
    return moments;
  }

  ConvertReport convert() {
    using Start = PartialFolder::Start;
    const Start start = options_.resume ? Start::resume : options_.output.force ? Start::replace : Start::fresh;
    PartialFolder partial(output_, identity_, start);
    if (options_.resume) {
      log_info(partial.resumed_layers() > 0 ? fmt::format("resuming after {} finished layers", partial.resumed_layers())
                                            : "nothing to resume: starting from the first layer");
    }
    map_large_allocations();
    const std::unique_ptr<MomentFile> moments = prepare_moments(partial);
    ConversionRun layers({source_, plan_, calibration_, options_.output, partial, moments.get(), options_.device});
    layers.run_layers();
    loss_ = layers.held_out_loss();
    const std::filesystem::path result = partial.prepare_result();
    const auto digests = write(layers.target(), partial, result);
    verify(layers, partial, result, digests);
    describe(layers, result, digests);
    check_interrupt(kResumeHelp);
    partial.publish();
    partial.discard();
    return report(layers.layer_reports(), partial.resumed_layers());
  }

  std::map<std::string, std::string> write(const ModelConfig& target, const PartialFolder& partial,
                                           const std::filesystem::path& result) const {
    ModelWriterOptions output = options_.output;
    output.output = result;
    const auto writer = ModelWriter::create(target, *source_, output);
    Progress progress({.phase = "write",
                       .unit = "tensors",
                       .total = plan_.tensors.size(),
                       .index = plan_.phases() - 1,
                       .count = plan_.phases()});
    const std::vector<WeightSpec> weights = source_->family().weights(target);
    int64_t held = -1;
    PartialFolder::StoredLayer layer;
    for (size_t i = 0; i < weights.size(); ++i) {
      if (plan_.tensors[i].role == TensorRole::kept) {
        writer->copy(weights[i].name);
      } else {
        if (held != weights[i].layer) layer = partial.load_layer(held = weights[i].layer);
        writer->write(weights[i].name, layer.tensors.at(weights[i].name));
      }
      progress.advance();
      check_interrupt(kResumeHelp);
    }
    writer->commit();
    progress.finish();
    return writer->digests();
  }

  void verify(const ConversionRun& layers, const PartialFolder& partial, const std::filesystem::path& result,
              const std::map<std::string, std::string>& digests) {
    Progress progress(
        {.phase = "verify", .unit = "tokens", .total = 0, .index = plan_.phases(), .count = plan_.phases()});
    const at::Tensor window = calibration_.windows[0];
    const int64_t tokens = std::min(kCheckedTokens, window.size(0));
    verification_ = with_context("verifying the output", [&] {
      return check_output({.path = result,
                           .format = options_.output.format,
                           .plan = plan_,
                           .partial = partial,
                           .digests = digests,
                           .quantised = options_.output.dtype == "q8_0",
                           .window = window,
                           .logits = layers.first_logits(tokens)});
    });
    progress.advance(static_cast<uint64_t>(verification_.tokens));
    progress.finish();
  }

  /// Model card and provenance, into folders only: a single file has no room for them.
  void describe(const ConversionRun& layers, const std::filesystem::path& result,
                const std::map<std::string, std::string>& digests) const {
    if (!is_folder_format(options_.output.format)) return;
    const ConversionRecord record{*source_, plan_,         calibration_, identity_, layers.layer_reports(),
                                  loss_,    verification_, digests};
    write_text(result / "README.md", model_card(record));
    write_text(result / "cinch.json", provenance_json(record).dump(1) + "\n");
  }

  ConvertReport finish_published() {
    if (std::filesystem::exists(PartialFolder::path_for(output_))) {
      PartialFolder(output_, identity_, PartialFolder::Start::resume).discard();
    }
    log_info("nothing to resume: the conversion is complete");
    std::vector<Json> reports;
    const std::filesystem::path file = output_ / "cinch.json";
    if (std::filesystem::exists(file)) {
      const Json recorded = parse_json(read_text(file), file.string());
      for (const Json& layer : recorded["layers"]) reports.push_back(layer);
      ConvertReport result = report(reports, plan_.source.n_layers);
      result.json["held_out"] = recorded["held_out"];
      result.json["verification"] = recorded["verification"];
      return result;
    }
    return report(reports, plan_.source.n_layers);
  }

  ConvertReport report(const std::vector<Json>& layers, int64_t resumed) const {
    Json suspicious = Json::array();
    for (const SuspiciousLayer& layer : suspicious_layers(layers)) {
      suspicious.push_back({{"layer", layer.layer}, {"reason", layer.reason}});
    }
    Json price;
    if (const SlotPrice slots = slot_price(layers); slots.own > 0) {
      price = {{"predicted_error", slots.shared}, {"predicted_error_own_slots", slots.own}};
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count();
    return {{{"output", options_.output.output.string()},
             {"kv_ratio", plan_.kv_ratio},
             {"kv_bytes_per_token",
              {{"source", plan_.source.kv_bytes_per_token()}, {"target", plan_.target.kv_bytes_per_token()}}},
             {"method", plan_.recipe.method},
             {"seconds", seconds},
             {"peak_memory_bytes", peak_memory_bytes()},
             {"resumed_layers", resumed},
             {"layers", layers},
             {"suspicious_layers", suspicious},
             {"shared_slots", price},
             {"held_out", loss_.to_json()},
             {"verification", verification_.to_json()},
             {"warnings", plan_.warnings}}};
  }

  std::shared_ptr<ModelSource> source_;
  ConvertOptions options_;
  std::filesystem::path output_;
  std::chrono::steady_clock::time_point started_;
  ConversionPlan plan_;
  CalibrationSet calibration_;
  Json identity_;
  HeldOutLoss loss_;
  VerificationResult verification_;
};

}  // namespace

ConvertReport convert_model(std::shared_ptr<ModelSource> source, const ConversionRecipe& recipe,
                            const ConvertOptions& options) {
  const c10::InferenceMode inference;
  return Conversion(std::move(source), recipe, options).run();
}

}  // namespace cinch
