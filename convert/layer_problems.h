// A layer of the original as solvers see it: with activations, or as weights and moments tell of it.
#pragma once

#include <filesystem>
#include <functional>

#include "convert/calibration.h"
#include "convert/conversion_plan.h"
#include "convert/moment_file.h"
#include "convert/transform.h"
#include "model/decoder_layer.h"
#include "model/model_source.h"

namespace cinch {

inline constexpr const char* kNotFiniteHelp = "`cinch verify MODEL` lists every tensor that holds NaN or infinity";

/// With `hidden` (W, T, E) before the layer in the original model; the problem refers to `original`. Throws
/// CheckpointError where weights or activations are not finite.
LayerProblem layer_problem(const ModelSource& source, const AttentionSpec& target, const WindowRoles& windows,
                           int64_t layer, const DecoderLayer& original, const at::Tensor& hidden);

/// Hands `use` the layer's problem with its moments and a residual stream of no windows, on the CPU in fp32; it is gone
/// afterwards.
void with_surveyed_layer(const ModelSource& source, const AttentionSpec& target, int64_t layer,
                         const MomentFile& moments, const std::function<void(const LayerProblem&)>& use);

/// One pass of the calibration windows through the original, writing the moments of every layer that `plan` converts.
/// Throws InterruptedError between layers; nothing is left then.
void measure_moments(std::shared_ptr<ModelSource> source, const ConversionPlan& plan, const CalibrationSet& calibration,
                     const Json& identity, const std::filesystem::path& path, at::Device device);

}  // namespace cinch
