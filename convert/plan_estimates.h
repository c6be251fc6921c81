// What a conversion costs, estimated from sizes alone: memory, disk and time. Constants are measured (docs/protocols.md
// says how well they hold).
#pragma once

#include <cstdint>

#include "convert/conversion_plan.h"
#include "model/model_source.h"
#include "model/model_writer.h"

namespace cinch {

/// Fills peak_memory_bytes, disk_bytes, seconds_estimate and break_even_tokens of a plan whose tensors and configs are
/// set.
void estimate_costs(const ModelSource& source, const ModelWriterOptions& output, int threads, ConversionPlan& plan);

}  // namespace cinch
