// Gives the fuzzer's bytes to readers that want a path: an anonymous file in memory, opened through /proc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

#include "checkpoints/checkpoint_format.h"

namespace cinch {

class FuzzFile {
 public:
  FuzzFile();
  ~FuzzFile();
  FuzzFile(const FuzzFile&) = delete;
  FuzzFile& operator=(const FuzzFile&) = delete;

  /// Replaces the content.
  void set(std::span<const uint8_t> bytes);
  const std::filesystem::path& path() const { return path_; }

 private:
  int descriptor_;
  std::filesystem::path path_;
};

/// Opens the file as this format and uses everything that a source offers. A project error is the right answer to a bad
/// file; any other exception, and everything that the sanitizers see, is a finding.
void exercise(const CheckpointFormat& format, const std::filesystem::path& path);

}  // namespace cinch
