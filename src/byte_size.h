// Sizes in bytes as people write them.
#pragma once

#include <cstdint>
#include <string>

namespace cinch {

/// "5GB", "500MB": decimal, as Hugging Face counts; "80GiB", "512MiB": binary, as memory is counted. Throws UsageError
/// naming `flag`.
uint64_t parse_byte_size(const std::string& flag, const std::string& text);

}  // namespace cinch
