// Models of random weights, for benchmarks: the sizes of a real one and nothing of what it knows.
#pragma once

#include <memory>
#include <string>

#include "model/decoder_model.h"
#include "model/model_source.h"

namespace cinch {

/// A model of which there is only the config. Reading a tensor throws CheckpointError.
std::shared_ptr<ModelSource> config_model(std::string name, ModelConfig config);

/// Draws the tensors of such a model on the device, every one anew: normal numbers of standard deviation 0.02, ones in
/// norms. `config` and `family` must outlive the reader.
TensorReader random_reader(const ModelConfig& config, const ModelFamily& family, at::ScalarType dtype,
                           at::Device device);

/// Bytes of all weights; of those that a step reads: without the embedding's other rows, where it is not the head too.
struct WeightBytes {
  int64_t all = 0, read_per_step = 0;
};
WeightBytes weight_bytes(const ModelConfig& config, const ModelFamily& family, int64_t element_bytes);

}  // namespace cinch
