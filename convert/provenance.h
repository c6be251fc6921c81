// Where a converted model comes from: cinch.json (for programs) and README.md (for people). Both hold only what follows
// from the inputs, no times and no paths, so that a resumed or repeated run writes the same bytes.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "convert/calibration.h"
#include "convert/conversion_plan.h"
#include "model/model_source.h"
#include "model/model_writer.h"

namespace cinch {

/// Loss on the held-out calibration windows, which no fit and no choice has seen, of the original and of the converted
/// model.
struct HeldOutLoss {
  int64_t tokens = 0;                    // 0: not measured (no text)
  double nll_before = 0, nll_after = 0;  // nats per token
  double kl = 0;                         // mean KL(original || converted), nats per token
  Json to_json() const;
};

struct VerificationResult {
  double max_abs_logit_difference = 0;
  double logit_rms = 0;
  int64_t tokens = 0;
  int64_t tensors = 0;  // derived tensors read back
  Json to_json() const;
};

/// Name, format and files (bytes, SHA-256) of a source.
Json source_identity(const ModelSource& source);

/// What makes two runs the same: program version, recipe, digests of the source's files and of the calibration tokens,
/// output form, threads, device. A partial folder is resumed only with an equal identity.
Json run_identity(const ModelSource& source, const ConversionPlan& plan, const CalibrationSet& calibration,
                  const ModelWriterOptions& output, const std::string& device);

struct ConversionRecord {
  const ModelSource& source;
  const ConversionPlan& plan;
  const CalibrationSet& calibration;
  const Json& identity;
  const std::vector<Json>& layer_reports;
  HeldOutLoss loss;
  VerificationResult verification;
  std::map<std::string, std::string> tensor_digests;  // XXH3-128
};

Json provenance_json(const ConversionRecord& record);
std::string model_card(const ConversionRecord& record);

/// The licence of a source model as its model card or GGUF metadata names it ("apache-2.0"); empty when it does not
/// say.
std::string licence_of(const ModelSource& source);

}  // namespace cinch
