// Which attention kernels run for a model, and why not others: what `doctor --kernels` prints.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <string>

#include "attention/cache_format.h"
#include "core/json.h"
#include "model/model_config.h"

namespace cinch {

struct KernelQuestion {
  c10::ScalarType dtype = c10::ScalarType::BFloat16;
  c10::Device device = c10::kCPU;
  CacheFormat cache_format = CacheFormat::sixteen_bit;  // of latent layers
};

/// One object per run of alike layers: "layers" ("0-29"), "attention" in words, and for each kind of work (training,
/// a prompt, a prompt's later part, the next token) the kernel that runs and what the others miss.
Json kernel_report(const ModelConfig& config, const KernelQuestion& question);

std::string kernel_report_text(const Json& report);

}  // namespace cinch
