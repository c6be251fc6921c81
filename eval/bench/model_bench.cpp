#include "eval/bench/model_bench.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/errors.h"
#include "core/progress.h"
#include "eval/bench/decode_run.h"
#include "eval/bench/device_timer.h"
#include "eval/bench/fault.h"
#include "eval/bench/random_model.h"

namespace cinch {
namespace {

constexpr int kUncounted = 2;          // steps before those that are timed
constexpr double kMemoryShare = 0.95;  // of what is free; the rest is fragments

bool has_latents(const ModelConfig& config) {
  return std::any_of(config.layers.begin(), config.layers.end(),
                     [](const AttentionSpec& spec) { return spec.kind == AttentionKind::latent; });
}

int64_t usable_memory(const ModelBenchOptions& options) {
  return static_cast<int64_t>(kMemoryShare * static_cast<double>(options.free_memory()));
}

std::string too_large(const char* what, int64_t needed, int64_t free) {
  return fmt::format("{} {:.2f} GB, free are {:.2f} GB", what, static_cast<double>(needed) * 1e-9,
                     static_cast<double>(free) * 1e-9);
}

/// One model's rows.
class ModelRun {
 public:
  ModelRun(const BenchModel& model, const ModelBenchOptions& options)
      : model_(model),
        options_(options),
        element_bytes_(static_cast<int64_t>(at::elementSize(options.dtype))),
        weights_(weight_bytes(config(), model.source->family(), element_bytes_)) {}

  int64_t rows() const {
    return static_cast<int64_t>(formats().size() * options_.batches.size() * options_.contexts.size());
  }

  void run(Progress& progress, const std::function<void(const ModelBenchRow&)>& on_row) {
    const int64_t free = usable_memory(options_);
    std::string misfit;
    if (weights_.all > free) {
      misfit = too_large("the weights take", weights_.all, free);
    } else {
      load();
    }
    for (const int64_t batch : options_.batches) {
      for (const int64_t context : options_.contexts) {
        for (const CacheFormat format : formats()) {
          ModelBenchRow row = row_of(format, batch, context);
          progress.set_note(fmt::format("{} {} x {}", model_.name, batch, context));
          if (misfit.empty()) {
            measure(row);
          } else {
            row.status = "does not fit";
            row.reason = misfit;
          }
          on_row(row);
          progress.advance();
          if (interrupt_requested()) return;
        }
      }
    }
  }

 private:
  const ModelConfig& config() const { return model_.source->config(); }

  /// Only latents have caches below 16 bits.
  std::vector<CacheFormat> formats() const {
    if (has_latents(config())) return options_.formats;
    return {CacheFormat::sixteen_bit};
  }

  void load() {
    if (model_.random_weights) {
      const TensorReader read = random_reader(config(), model_.source->family(), options_.dtype, options_.device);
      decoder_ = std::make_unique<DecoderModel>(model_.source, read);
    } else {
      decoder_ = std::make_unique<DecoderModel>(model_.source, options_.dtype, options_.device);
    }
  }

  ModelBenchRow row_of(CacheFormat format, int64_t batch, int64_t context) const {
    ModelBenchRow row;
    row.model = model_.name;
    row.random_weights = model_.random_weights;
    row.format = format;
    row.batch = batch;
    row.context = context;
    row.kv_bytes_per_token = kv_bytes_per_token(config(), format, element_bytes_);
    row.cache_bytes = kv_bytes_seen(config(), format, element_bytes_, batch, context);
    row.weight_bytes = weights_.all;
    row.read_weight_bytes = weights_.read_per_step;
    return row;
  }

  void measure(ModelBenchRow& row) const {
    const DecodeRunOptions wish{.batch = row.batch,
                                .context = row.context,
                                .steps = options_.steps + kUncounted,
                                .cache_format = row.format,
                                .kernel = options_.kernel,
                                .graphs = options_.graphs};
    try {
      const int64_t logits = 3 * row.batch * config().vocab_size * static_cast<int64_t>(sizeof(float));
      const int64_t needed = cache_memory(wish) + logits;
      const int64_t free = usable_memory(options_);
      if (needed > free) {
        row.status = "does not fit";
        row.reason = too_large("caches and logits take", needed, free);
        return;
      }
      const auto run = make_decode_run(*decoder_, wish, options_.functions);
      time(*run, row);
    } catch (const std::exception& fault) {
      const BenchFault found = explain_fault(fault);
      row.status = found.status;
      row.reason = found.reason;
    }
  }

  bool plain() const { return options_.functions == nullptr || options_.kernel == DecodeKernel::attend; }
  int64_t cache_memory(const DecodeRunOptions& wish) const {
    return plain() ? plain_cache_bytes(config(), element_bytes_, wish) : session_cache_bytes(config(), wish);
  }

  void time(DecodeRun& run, ModelBenchRow& row) const {
    const DeviceTimer timer(options_.device, {.graphs = false,  // a run brings its own
                                              .least_replays = options_.steps,
                                              .most_replays = options_.steps});
    const WorkTime time = timer.time({[&] { run.step(); }});
    row.kernel = run.kernel();
    row.graph = run.graph();
    row.reason = run.note();
    row.steps = time.replays;
    row.seconds = time.seconds;
    row.fastest = time.fastest;
    row.slowest = time.slowest;
  }

  const BenchModel& model_;
  const ModelBenchOptions& options_;
  int64_t element_bytes_;
  WeightBytes weights_;
  std::unique_ptr<DecoderModel> decoder_;
};

double bytes_of_token(const AttentionSpec& spec, CacheFormat format, int64_t element_bytes) {
  if (spec.kind == AttentionKind::latent && format != CacheFormat::sixteen_bit) return bytes_per_token(spec, format);
  return static_cast<double>(spec.kv_elements() * element_bytes);
}

}  // namespace

double kv_bytes_per_token(const ModelConfig& config, CacheFormat format, int64_t element_bytes) {
  double bytes = 0;
  for (const AttentionSpec& spec : config.layers) bytes += bytes_of_token(spec, format, element_bytes);
  return bytes;
}

int64_t kv_bytes_seen(const ModelConfig& config, CacheFormat format, int64_t element_bytes, int64_t batch,
                      int64_t context) {
  double bytes = 0;
  for (const AttentionSpec& spec : config.layers) {
    const int64_t tokens = spec.window > 0 ? std::min(context, spec.window) : context;
    bytes += bytes_of_token(spec, format, element_bytes) * static_cast<double>(batch * tokens);
  }
  return std::llround(bytes);
}

void bench_models(const std::vector<BenchModel>& models, const ModelBenchOptions& options,
                  const std::function<void(const ModelBenchRow&)>& on_row) {
  int64_t rows = 0;
  for (const BenchModel& model : models) rows += ModelRun(model, options).rows();
  Progress progress({.phase = "decode", .unit = "cases", .total = static_cast<uint64_t>(rows)});
  for (const BenchModel& model : models) {
    with_context(fmt::format("measuring {}", model.name), [&] { ModelRun(model, options).run(progress, on_row); });
    if (interrupt_requested()) break;
  }
}

Json row_json(const ModelBenchRow& row, const ModelBenchOptions& options) {
  Json json = {{"model", row.model},
               {"random_weights", row.random_weights},
               {"kv_format", name_of(row.format)},
               {"batch", row.batch},
               {"context", row.context},
               {"kv_bytes_per_token", row.kv_bytes_per_token},
               {"cache_bytes", row.cache_bytes},
               {"weight_bytes", row.weight_bytes},
               {"read_weight_bytes", row.read_weight_bytes},
               {"status", row.status}};
  if (!row.reason.empty()) json["reason"] = row.reason;
  if (row.status != "ok") return json;
  const double speed = static_cast<double>(row.cache_bytes + row.read_weight_bytes) / row.seconds;
  json["kernel"] = row.kernel;
  json["graph"] = row.graph;
  json["steps"] = row.steps;
  json["us"] = row.seconds * 1e6;
  json["fastest_us"] = row.fastest * 1e6;
  json["slowest_us"] = row.slowest * 1e6;
  json["tokens_per_second"] = row.tokens_per_second();
  json["gb_per_s"] = speed * 1e-9;
  if (options.copy_bytes_per_second > 0) json["share_of_copy"] = speed / options.copy_bytes_per_second;
  return json;
}

}  // namespace cinch
