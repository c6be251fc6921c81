#include "checkpoints/layout.h"

#include <fmt/format.h>

#include "core/errors.h"
#include "core/json.h"

namespace cinch {

uint64_t checked_multiply(uint64_t a, uint64_t b, const std::string& where) {
  uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) throw CheckpointError(fmt::format("{}: the size overflows", where));
  return product;
}

uint64_t checked_bytes(const std::vector<int64_t>& shape, int64_t bits, const std::string& where) {
  uint64_t count = 1;
  for (const int64_t size : shape) {
    if (size < 0) throw CheckpointError(fmt::format("{}: the shape has the negative size {}", where, size));
    count = checked_multiply(count, static_cast<uint64_t>(size), where);
    if (count > static_cast<uint64_t>(INT64_MAX)) throw CheckpointError(fmt::format("{}: the size overflows", where));
  }
  const uint64_t total_bits = checked_multiply(count, static_cast<uint64_t>(bits), where);
  if (total_bits % 8 != 0) {
    throw CheckpointError(fmt::format("{}: {} elements of {} bits do not fill whole bytes", where, count, bits));
  }
  return total_bits / 8;
}

bool is_valid_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    if (length == 0 || i + length > text.size()) return false;
    for (size_t k = 1; k < length; ++k) {
      if ((static_cast<unsigned char>(text[i + k]) & 0xC0) != 0x80) return false;
    }
    const auto second = length > 1 ? static_cast<unsigned char>(text[i + 1]) : 0;
    const bool overlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
    const bool beyond = (lead == 0xED && second > 0x9F) || (lead == 0xF4 && second > 0x8F);
    if (overlong || beyond) return false;
    i += length;
  }
  return true;
}

void check_tensor_name(std::string_view name, const std::string& file) {
  constexpr size_t kMaxNameBytes = 1024;
  if (name.empty()) throw CheckpointError(fmt::format("{}: a tensor has an empty name", file));
  if (name.size() > kMaxNameBytes) {
    throw CheckpointError(
        fmt::format("{}: a tensor name has {} bytes, the limit is {}", file, name.size(), kMaxNameBytes));
  }
  if (!is_valid_utf8(name)) throw CheckpointError(fmt::format("{}: a tensor name is not valid UTF-8", file));
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20) {
      throw CheckpointError(fmt::format("{}: a tensor name holds a control character", file));
    }
  }
}

void check_text_metadata(const std::map<std::string, std::string>& metadata, const std::string& file) {
  for (const auto& [key, value] : metadata) {
    if (is_valid_utf8(key) && is_valid_utf8(value)) continue;
    throw UsageError(fmt::format("{}: metadata \"{}\" is not valid UTF-8", file, is_valid_utf8(key) ? key : "?"));
  }
}

ByteRange row_range(const TensorInfo& info, int64_t begin, int64_t end, const std::string& file) {
  const int64_t rows = info.shape.empty() ? 1 : info.shape.front();
  if (begin < 0 || begin > end || end > rows) {
    throw CheckpointError(fmt::format("{}: tensor \"{}\": rows {}..{} asked of {}", file, info.name, begin, end, rows));
  }
  const uint64_t row_bits = rows == 0 ? 0 : static_cast<uint64_t>(info.numel() / rows) * dtype_bits(info.dtype);
  const uint64_t first = row_bits * static_cast<uint64_t>(begin);
  const uint64_t count = row_bits * static_cast<uint64_t>(end - begin);
  if (first % 8 != 0 || count % 8 != 0) {
    throw CheckpointError(fmt::format("{}: tensor \"{}\": its rows do not start at whole bytes", file, info.name));
  }
  return {first / 8, count / 8};
}

TensorInfo row_info(const TensorInfo& info, int64_t begin, int64_t end) {
  TensorInfo rows = info;
  if (!rows.shape.empty()) rows.shape.front() = end - begin;
  return rows;
}

const TensorInfo& require_tensor(const TensorSource& source, const std::string& name) {
  const TensorInfo* info = source.find(name);
  if (info != nullptr) return *info;
  std::vector<std::string> names;
  for (const TensorInfo& known : source.tensors()) names.push_back(known.name);
  const std::string near = nearest_word(name, names);
  throw CheckpointError(fmt::format("{}: tensor \"{}\" is missing{}", source.files().front().string(), name,
                                    near.empty() ? "" : fmt::format(" (there is \"{}\")", near)));
}

}  // namespace cinch
