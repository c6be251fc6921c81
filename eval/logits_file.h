// Logits on disk, for comparing cinch with any other runtime.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "model/decoder_model.h"

namespace cinch {

/// Token sequences of a text file: one per line, ids separated by blanks; empty lines are skipped. Throws ConfigError
/// naming file and line.
std::vector<std::vector<int64_t>> read_sequences(const std::filesystem::path& path);

/// Runs each sequence alone and writes the logits of all positions as one .npy array, fp32 (tokens, V), sequences one
/// after another. Atomic; one layer's weights and one block of rows are held at a time.
void write_logits(std::shared_ptr<ModelSource> model, const std::vector<std::vector<int64_t>>& sequences,
                  const std::filesystem::path& path, at::ScalarType dtype, at::Device device);

}  // namespace cinch
