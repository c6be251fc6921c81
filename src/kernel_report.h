// Which attention kernels run for a model, and why not others: what `doctor --kernels` prints.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>

#include "core/json.h"
#include "model/model_config.h"

namespace cinch {

/// One object per run of alike layers: "layers" ("0-29"), "attention" in words, and for each kind of work (training,
/// a prompt, a prompt's later part, the next token) the kernel that runs and what the others miss.
Json kernel_report(const ModelConfig& config, c10::ScalarType dtype, c10::Device device);

std::string kernel_report_text(const Json& report);

}  // namespace cinch
