// Checked arithmetic and rules that every reader applies to sizes and names from a file before using them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoints/tensor_source.h"

namespace cinch {

/// a * b, or CheckpointError "<where>: <what> overflows".
uint64_t checked_multiply(uint64_t a, uint64_t b, const std::string& where);

/// Bytes of a shape in `bits` per element: no negative size, no overflow of int64, whole bytes. Throws CheckpointError
/// naming the tensor.
uint64_t checked_bytes(const std::vector<int64_t>& shape, int64_t bits, const std::string& where);

/// Non-empty, valid UTF-8 without control characters, at most 1024 bytes. Throws CheckpointError.
void check_tensor_name(std::string_view name, const std::string& file);
bool is_valid_utf8(std::string_view text);
/// What a sink is given for its header: keys and values must be UTF-8. Throws UsageError.
void check_text_metadata(const std::map<std::string, std::string>& metadata, const std::string& file);

/// Where rows [begin, end) of a tensor lie: offset and length in bytes. Throws CheckpointError when outside or not on a
/// byte boundary.
struct ByteRange {
  uint64_t offset = 0, size = 0;
};
ByteRange row_range(const TensorInfo& info, int64_t begin, int64_t end, const std::string& file);

/// The info of those rows.
TensorInfo row_info(const TensorInfo& info, int64_t begin, int64_t end);

/// The tensor of that name in `source`; throws CheckpointError naming the nearest one.
const TensorInfo& require_tensor(const TensorSource& source, const std::string& name);

}  // namespace cinch
