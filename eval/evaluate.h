// Runs models over the windows of a protocol, at one or several cache precisions, and compares them with a reference.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "eval/eval_report.h"
#include "model/decoder_model.h"

namespace cinch {

struct EvalModel {
  std::string name;  // for reports and errors
  std::shared_ptr<ModelSource> source;
};

struct EvalOptions {
  PerplexityProtocol protocol;
  std::vector<CachePrecision> caches;  // emulated for every model and the reference, beside their 16-bit rows
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  std::optional<int64_t>
      bos_id;  // put before the text and at the head of every window (llamacpp protocol, models that add BOS)
};

/// A row for each model and precision (EvalReport). All see the same windows in the same run, and the reference runs
/// once per precision: its residual stream at 16 bits gives the logits that every row is compared with. Held at a time:
/// one batch of windows' residual streams of the reference and one model, one layer's weights, one block of logits.
/// Throws UsageError on a text shorter than one window, ids outside the vocabulary, or models of different
/// vocabularies.
EvalReport evaluate(const std::vector<EvalModel>& models, const std::optional<EvalModel>& reference,
                    const std::vector<int64_t>& ids, const EvalOptions& options);

}  // namespace cinch
