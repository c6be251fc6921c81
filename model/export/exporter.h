// Writing a model for a runtime: rules first, then the files in the runtime's own terms, then a check of what was
// written before it takes the output's place.
#pragma once

#include <string>
#include <vector>

#include "core/json.h"
#include "model/export/runtime_rules.h"
#include "model/model_writer.h"

namespace cinch {

struct ExportOptions {
  /// `runtime` "": what reads the format (hf, llama.cpp for gguf; cinch for the others). `approximate`: leave out what
  /// the runtime has not, and measure it.
  ModelWriterOptions writer;
  int64_t pad_rank = 0;  // zero-pad the latent to this many numbers
  Json provenance;       // cinch.json of a folder, to which digests are added
};

/// Distances of logits, of the same rows.
struct LogitDifference {
  double max_abs = 0;         // of any logit
  double kl_mean = 0;         // nats, of the first from the second
  double kl_max = 0;          // nats, of any row
  double top1_agreement = 0;  // share of rows

  Json to_json() const;
};
/// Both (T, V) fp32.
LogitDifference logit_difference(const at::Tensor& reference, const at::Tensor& other);

struct ExportReport {
  size_t tensors = 0;
  std::vector<BrokenRule> left_out;  // of an approximate export
  std::string runtime;               // "" for cinch
  Json verification;                 // null for a single tensor file; also written beside or into the output

  Json to_json() const;
};

/// Throws UnsupportedError (what the runtime cannot compute), VerificationError (nothing is published then),
/// UsageError.
ExportReport export_model(std::shared_ptr<ModelSource> source, const ExportOptions& options);

}  // namespace cinch
