// Writes one safetensors file, or shards with their index.
#pragma once

#include <memory>

#include "checkpoints/tensor_sink.h"

namespace cinch {

std::unique_ptr<TensorSink> create_safetensors_sink(const SinkOptions& options);

}  // namespace cinch
