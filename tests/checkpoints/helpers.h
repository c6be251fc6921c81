// Small tools of the checkpoint tests.
#pragma once

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "checkpoints/checkpoint_format.h"
#include "core/errors.h"
#include "core/files.h"

namespace cinch {

/// The bytes 0, 1, 2, ... (mod 251).
inline std::vector<std::byte> counting_bytes(uint64_t count, int first = 0) {
  std::vector<std::byte> bytes(count);
  for (uint64_t i = 0; i < count; ++i) bytes[i] = static_cast<std::byte>((i + static_cast<uint64_t>(first)) % 251);
  return bytes;
}

inline std::vector<std::byte> copied(std::span<const std::byte> bytes) { return {bytes.begin(), bytes.end()}; }

template <typename T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

template <typename T>
std::vector<T> values_of(std::span<const std::byte> bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

/// All messages of the error that `body` throws, the fault first; empty when it throws nothing. Anything but a project
/// error escapes.
template <typename Body>
std::string fault_of(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

/// Little-endian pieces of a hand-made file.
class FileBuilder {
 public:
  template <typename T>
  FileBuilder& put(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  FileBuilder& raw(std::string_view text) {
    text_ += text;
    return *this;
  }
  FileBuilder& counted(std::string_view text) { return put<uint64_t>(text.size()).raw(text); }
  FileBuilder& pad(size_t alignment) {
    text_.resize((text_.size() + alignment - 1) / alignment * alignment);
    return *this;
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

}  // namespace cinch
