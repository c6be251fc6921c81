// Which runtimes load a converted model, and the rule that decides. A GQA conversion keeps the source's class and only
// lowers its number of key-value heads, so a runtime that loads the source loads the result, as long as one number
// describes all layers.
#pragma once

#include <string>
#include <vector>

#include "convert/conversion_plan.h"
#include "model/model_config.h"

namespace cinch {

/// Runtimes that `--for` knows besides "native".
const std::vector<std::string>& known_runtimes();

/// One verdict per known runtime.
std::vector<RuntimeVerdict> runtime_verdicts(const ModelConfig& target);

}  // namespace cinch
