#include "tests/fuzz/fuzz_file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "core/errors.h"

namespace cinch {
namespace {

/// Reads each byte, so that a span outside of the file or of its buffer is seen.
void touch(std::span<const std::byte> bytes) {
  volatile unsigned sum = 0;
  for (const std::byte value : bytes) sum = sum + static_cast<unsigned>(value);
}

void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace

FuzzFile::FuzzFile() : descriptor_(::memfd_create("fuzz", MFD_CLOEXEC)) {
  require(descriptor_ >= 0);
  path_ = "/proc/self/fd/" + std::to_string(descriptor_);
}

FuzzFile::~FuzzFile() { ::close(descriptor_); }

void FuzzFile::set(std::span<const uint8_t> bytes) {
  require(::ftruncate(descriptor_, 0) == 0);
  require(::pwrite(descriptor_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
}

void exercise(const CheckpointFormat& format, const std::filesystem::path& path) {
  try {
    format.recognises(path);
    const auto source = format.open(path);
    for (const TensorInfo& info : source->tensors()) {
      // A file may claim many large tensors only as far as it holds their bytes, but quantised ones grow when read.
      if (info.bytes() > (uint64_t{1} << 24)) continue;
      const TensorData data = source->read(info.name);
      require(data.bytes.size() == info.bytes());
      touch(data.bytes);
      if (!info.shape.empty() && info.shape.front() > 0) {
        try {
          touch(source->read_rows(info.name, info.shape.front() / 2, info.shape.front()).bytes);
        } catch (const Error&) {  // rows of sub-byte types and of quantised vectors
        }
      }
      source->recorded_digest(info.name);
      source->release(info.name);
    }
    source->metadata();
  } catch (const Error&) {
  }
}

}  // namespace cinch
