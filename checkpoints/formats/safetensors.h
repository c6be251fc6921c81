// The safetensors format: u64 header length, JSON header, raw data. Reader for one file or a sharded folder, writer for
// both. Source: the format's README (huggingface/safetensors, "Format").
#pragma once

#include "checkpoints/checkpoint_format.h"

namespace cinch {

const CheckpointFormat& safetensors_format();

/// Checks one header (without its 8-byte length) against `data_bytes`, the bytes that follow it; returns the tensors in
/// data order and the offset of each. Separate so that tests and the fuzzer can call it on memory.
struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;
  std::vector<uint64_t> offsets;  // from the start of the data
  std::map<std::string, std::string> metadata;
};
SafetensorsHeader parse_safetensors_header(std::string_view header, uint64_t data_bytes, const std::string& file);

}  // namespace cinch
