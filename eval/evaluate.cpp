#include "eval/evaluate.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "core/errors.h"
#include "core/progress.h"
#include "eval/eval_windows.h"
#include "eval/token_scores.h"

namespace cinch {
namespace {

constexpr int64_t kHiddenBytes = int64_t{256} << 20;  // of one model's residual stream held at a time
constexpr int64_t kLogitElements = int64_t{1} << 24;  // 64 MiB of fp32 logits held at a time for one model
constexpr int64_t kProbeTokens = 4;

/// One model at one precision, and what is known of it so far.
struct Run {
  const EvalModel* model;
  CachePrecision cache;
  bool of_reference = false;
  double bytes_16_bit = 0, bytes = 0;  // of one token; measured in the first batch of windows
  TokenScores scores = {};

  bool is_reference() const { return of_reference && !cache.rounds(); }
};

/// Bytes that one token adds to this layer's cache at 16 bits, from the cache of a run over some tokens of `hidden` (W,
/// T, E).
int64_t measure_cache(const DecoderLayer& layer, const at::Tensor& hidden) {
  const at::Tensor some = hidden.narrow(0, 0, 1).narrow(1, 0, std::min(kProbeTokens, hidden.size(1)));
  KvCache cache;
  layer.attention().head_outputs(layer.attention_input(some), 0, 0, &cache);
  return cache.bytes_per_token() * 2 / some.element_size();
}

/// `stream` through all layers.
void run_layers(LayerStream& stream, Run& run, Progress& progress) {
  const bool measure = run.bytes_16_bit == 0;
  while (!stream.done()) {
    check_interrupt();
    const DecoderLayer layer = stream.load_layer();
    if (measure) {
      const auto measured = static_cast<double>(measure_cache(layer, stream.hidden()));
      const AttentionSpec& spec = layer.attention().spec();
      run.bytes_16_bit += measured;
      run.bytes += measured * (packed_bytes_per_token(spec, run.cache) / packed_bytes_per_token(spec, {}));
    }
    stream.advance(layer);
    progress.advance();
  }
}

/// Rows of the residual stream whose logits predict a scored token, and those tokens.
struct ScoredRows {
  std::vector<int64_t> rows, targets;
  std::vector<int64_t> window_tokens;  // scored tokens of each window
};

ScoredRows scored_rows(const at::Tensor& windows, const EvalWindowGroup& group, int64_t first) {
  ScoredRows result;
  const auto* ids = windows.const_data_ptr<int64_t>();
  for (int64_t w = 0; w < windows.size(0); ++w) {
    const int64_t from = group.windows[static_cast<size_t>(first + w)].scored_from;
    for (int64_t p = from; p < group.length; ++p) {
      result.rows.push_back(w * group.length + p - 1);
      result.targets.push_back(ids[w * group.length + p]);
    }
    result.window_tokens.push_back(group.length - from);
  }
  return result;
}

at::Tensor logits_of_rows(const LayerStream& stream, const at::Tensor& rows) {
  const at::Tensor& hidden = stream.hidden();
  return stream.trunk().logits(hidden.view({-1, hidden.size(2)}).index_select(0, rows));
}

void score(const LayerStream& model, const LayerStream* reference, const ScoredRows& scored, int64_t vocabulary,
           TokenScores& scores) {
  const auto count = static_cast<int64_t>(scored.rows.size());
  const at::Device device = model.hidden().device();
  const at::Tensor rows = at::tensor(scored.rows, at::kLong).to(device);
  const at::Tensor targets = at::tensor(scored.targets, at::kLong).to(device);
  const int64_t step = std::clamp<int64_t>(kLogitElements / vocabulary, 1, 1024);
  for (int64_t begin = 0; begin < count; begin += step) {
    const int64_t n = std::min(step, count - begin);
    const at::Tensor some = rows.narrow(0, begin, n);
    at::Tensor logits = logits_of_rows(model, some);
    at::Tensor other = reference != nullptr ? logits_of_rows(*reference, some) : at::Tensor();
    scores.add_rows(logits, other, targets.narrow(0, begin, n));
    check_interrupt();
  }
  scores.window_tokens.insert(scores.window_tokens.end(), scored.window_tokens.begin(), scored.window_tokens.end());
}

void check_inputs(const std::vector<Run>& runs, const std::vector<int64_t>& ids) {
  const EvalModel& first = *runs.front().model;
  const int64_t vocabulary = first.source->config().vocab_size;
  for (const Run& run : runs) {
    const int64_t other = run.model->source->config().vocab_size;
    if (other == vocabulary) continue;
    throw UsageError(
        fmt::format("{} has a vocabulary of {} tokens, {} one of {}", run.model->name, other, first.name, vocabulary),
        "compare a model with the one it was made from, or with others made from it");
  }
  for (const int64_t id : ids) {
    if (id < 0 || id >= vocabulary) {
      throw UsageError(fmt::format("token id {} is outside the model's vocabulary of {}", id, vocabulary),
                       "the text was tokenised for another model");
    }
  }
}

/// The reference, then the models, each at 16 bits first: as the report lists them.
std::vector<Run> plan_runs(const std::vector<EvalModel>& models, const std::optional<EvalModel>& reference,
                           const std::vector<CachePrecision>& caches) {
  std::vector<Run> runs;
  const auto add = [&](const EvalModel& model, bool of_reference) {
    runs.push_back({.model = &model, .cache = {}, .of_reference = of_reference});
    for (const CachePrecision& cache : caches) {
      if (cache.rounds()) runs.push_back({.model = &model, .cache = cache, .of_reference = of_reference});
    }
  };
  if (reference) add(*reference, true);
  for (const EvalModel& model : models) add(model, false);
  return runs;
}

/// The text as windows, and how many of them run as one batch.
struct Batches {
  std::vector<int64_t> text;
  std::vector<EvalWindowGroup> groups = {};
  std::optional<int64_t> head = std::nullopt;
  int64_t token_bytes = 0;  // of the widest residual stream

  int64_t windows_at_once(const EvalWindowGroup& group) const {
    return std::clamp<int64_t>(kHiddenBytes / (group.length * token_bytes), 1,
                               static_cast<int64_t>(group.windows.size()));
  }
  uint64_t count() const {
    uint64_t batches = 0;
    for (const EvalWindowGroup& group : groups) {
      const auto windows = static_cast<int64_t>(group.windows.size());
      if (windows > 0) batches += static_cast<uint64_t>((windows - 1) / windows_at_once(group) + 1);
    }
    return batches;
  }
};

Batches batches_of(const std::vector<int64_t>& ids, const EvalOptions& options, const std::vector<Run>& runs) {
  Batches result{.text = ids};
  if (options.protocol.kind == PerplexityProtocol::Kind::llamacpp) result.head = options.bos_id;
  if (result.head) result.text.insert(result.text.begin(), *result.head);
  if (options.protocol.max_tokens > 0) {
    result.text.resize(std::min(result.text.size(), static_cast<size_t>(options.protocol.max_tokens)));
  }
  result.groups = eval_windows(options.protocol, static_cast<int64_t>(result.text.size()));
  for (const Run& run : runs)
    result.token_bytes = std::max(result.token_bytes, run.model->source->config().hidden_size);
  result.token_bytes *= static_cast<int64_t>(c10::elementSize(options.dtype));
  return result;
}

/// Every run over `windows` (W, T), whose first is window `first` of `group`.
void run_batch(std::vector<Run>& runs, const at::Tensor& windows, const ScoredRows& scored, const EvalOptions& options,
               Progress& progress) {
  std::optional<LayerStream> reference;
  for (Run& run : runs) {
    LayerStream stream(run.model->source, windows,
                       {.dtype = options.dtype, .device = options.device, .cache = run.cache});
    run_layers(stream, run, progress);
    if (run.is_reference()) {
      reference.emplace(std::move(stream));
    } else {
      score(stream, reference ? &*reference : nullptr, scored, run.model->source->config().vocab_size, run.scores);
    }
  }
}

std::vector<EvalRow> rows_of(const std::vector<Run>& runs, const PerplexityProtocol& protocol) {
  std::vector<EvalRow> rows;
  for (const Run& run : runs) {
    EvalRow row{.model = run.model->name, .of_reference = run.of_reference, .cache = run.cache};
    row.kv_bytes_per_token = run.bytes;
    row.kv_ratio = run.bytes / runs.front().bytes;
    row.bits_per_number = 16 * run.bytes / run.bytes_16_bit;
    if (run.is_reference()) {
      // Every other run has the reference's losses beside its own.
      row.perplexity = perplexity_of(protocol, runs.back().scores.reference_nll, runs.back().scores.window_tokens);
    } else {
      row.perplexity = perplexity_of(protocol, run.scores.nll, run.scores.window_tokens);
      if (runs.front().of_reference) row.fidelity = fidelity_of(run.scores);
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

EvalReport evaluate(const std::vector<EvalModel>& models, const std::optional<EvalModel>& reference,
                    const std::vector<int64_t>& ids, const EvalOptions& options) {
  const c10::InferenceMode inference;
  const auto start = std::chrono::steady_clock::now();
  std::vector<Run> runs = plan_runs(models, reference, options.caches);
  check_inputs(runs, ids);
  const Batches batches = batches_of(ids, options, runs);
  uint64_t layers = 0;
  for (const Run& run : runs) layers += static_cast<uint64_t>(run.model->source->config().n_layers);
  Progress progress({.phase = "eval", .unit = "layers", .total = batches.count() * layers});
  int64_t tokens_run = 0;
  for (const EvalWindowGroup& group : batches.groups) {
    const auto total = static_cast<int64_t>(group.windows.size());
    if (total == 0) continue;
    const int64_t step = batches.windows_at_once(group);
    for (int64_t first = 0; first < total; first += step) {
      const at::Tensor windows = window_ids(batches.text, group, first, std::min(step, total - first), batches.head);
      run_batch(runs, windows, scored_rows(windows, group, first), options, progress);
      tokens_run += windows.numel() * static_cast<int64_t>(runs.size());
    }
  }
  progress.finish();

  EvalReport report{.rows = rows_of(runs, options.protocol)};
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report.tokens_per_second = static_cast<double>(tokens_run) / report.seconds;
  return report;
}

}  // namespace cinch
