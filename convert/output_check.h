// Verification: opens what was written and compares it with what was meant, tensor by tensor and by its logits.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

#include "convert/conversion_plan.h"
#include "convert/partial_folder.h"
#include "convert/provenance.h"

namespace cinch {

struct OutputCheck {
  std::filesystem::path path;  // the written folder or file
  std::string format;          // of ModelWriterOptions
  const ConversionPlan& plan;
  const PartialFolder& partial;                       // holds the derived tensors as computed
  const std::map<std::string, std::string>& digests;  // of the bytes handed to the writer, by stored name
  bool quantised = false;                             // Q8_0: values differ by the quantisation
  at::Tensor window;                                  // (T) ids of the window whose logits are compared
  at::Tensor logits;  // (t, V) of the converted model in memory, for the first t tokens of the window
};

/// Throws VerificationError naming the first tensor that differs, or the logit difference where it is more than
/// round-off.
VerificationResult check_output(const OutputCheck& check);

}  // namespace cinch
