// Files that are either complete or absent: memory-mapped reading, atomic writing, and the few path helpers around
// them.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace cinch {

/// A whole file mapped read-only. Throws Error when it cannot be opened, ConfigError when it is no regular file. An
/// empty file gives an empty span.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

  /// Tells the kernel that these bytes are not needed again, so that streaming through a model keeps its memory small.
  void release(std::span<const std::byte> range) const noexcept;

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// Writes to a hidden temporary name in the same folder; `commit` flushes to disk and renames. Without commit nothing
/// remains; what a killed process left is removed by the next writer of the same file (a lock tells the dead from the
/// living). A full disk throws ResourceError naming the file; a read-only folder, or a target that is there and is no
/// regular file (a device would be replaced), throws Error.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  /// Writes at an absolute position (files whose layout is known beforehand).
  void write_at(uint64_t offset, std::span<const std::byte> bytes);
  uint64_t position() const { return position_; }
  /// Claims the disk space for a file of this size, so that a full disk shows before the work and not after it. Where
  /// the file system cannot, nothing happens. Throws ResourceError.
  void reserve(uint64_t size);
  /// To disk, without the rename: files that belong together are all flushed before the first of them is renamed.
  void flush();
  void commit();
  const std::filesystem::path& temporary_path() const { return temporary_; }

 private:
  void open_temporary();
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
  uint64_t position_ = 0;
};

/// Whole file as text; throws Error when unreadable, ConfigError when larger than `limit` bytes.
std::string read_text(const std::filesystem::path& path, uint64_t limit = uint64_t{1} << 30);
/// Atomic.
void write_text(const std::filesystem::path& path, std::string_view text);

/// fsync of a folder, so that renames in it are on disk.
void sync_folder(const std::filesystem::path& folder);

/// Bytes free for this user on the file system of `path` (or its nearest existing parent).
uint64_t free_disk_bytes(const std::filesystem::path& path);

/// Throws ResourceError (ENOSPC, EDQUOT, ENOMEM, EMFILE) or Error (all others): "<what> <path>: <reason>".
[[noreturn]] void throw_system_error(std::string_view what, const std::filesystem::path& path, int error_number);

}  // namespace cinch
