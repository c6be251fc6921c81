// Digests: XXH3-128 for tensors (fast), SHA-256 for provenance of files.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace cinch {

/// Streaming XXH3-128; `hex` gives 32 lower-case hexadecimal digits (canonical big-endian form).
class Xxh3Digest {
 public:
  Xxh3Digest();
  ~Xxh3Digest();
  void update(std::span<const std::byte> bytes);
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string xxh3_hex(std::span<const std::byte> bytes);
std::string sha256_hex(std::span<const std::byte> bytes);
std::string sha256_hex_of_file(const std::filesystem::path& path);

}  // namespace cinch
