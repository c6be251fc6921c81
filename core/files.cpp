#include "core/files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/errors.h"
#include "core/progress.h"

namespace cinch {
namespace {

/// Closes on scope exit; for reading, where a failed close loses nothing.
struct Descriptor {
  int value;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

int open_or_throw(const std::filesystem::path& path, int flags, const char* what) {
  const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  if (descriptor < 0) throw_system_error(what, path, errno);
  return descriptor;
}

size_t regular_file_size(int descriptor, const std::filesystem::path& path) {
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) throw_system_error("cannot read", path, errno);
  if (!S_ISREG(status.st_mode)) {
    throw ConfigError(fmt::format("cannot read {}: not a regular file", path.string()),
                      "name a file, not a folder, pipe or device");
  }
  return static_cast<size_t>(status.st_size);
}

std::filesystem::path folder_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

std::string temporary_prefix(const std::filesystem::path& path) { return "." + path.filename().string() + ".tmp-"; }

/// A killed writer leaves its temporary file but not its lock: whoever writes the same target next removes it.
void remove_stale_temporaries(const std::filesystem::path& path) noexcept {
  try {
    const std::string prefix = temporary_prefix(path);
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator(folder_of(path), ignored)) {
      if (!entry.path().filename().string().starts_with(prefix)) continue;
      const Descriptor file{::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW)};
      if (file.value >= 0 && ::flock(file.value, LOCK_EX | LOCK_NB) == 0) ::unlink(entry.path().c_str());
    }
  } catch (...) {  // a leftover that cannot be listed is no reason to fail
  }
}

}  // namespace

void throw_system_error(std::string_view what, const std::filesystem::path& path, int error_number) {
  const std::string message = fmt::format("{} {}: {}", what, path.string(), std::strerror(error_number));
  switch (error_number) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      throw ResourceError(message, "free some space or choose another target");
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      throw ResourceError(message, "close other programs, or raise the limits of this shell (ulimit)");
    case EROFS:
    case EACCES:
    case EPERM:
      throw Error(message, "check the permissions of the file and of its folder");
    case ENOENT:
    case ENOTDIR:
      throw Error(message, "check that the folder exists and that the name is spelt right");
    case EISDIR:
      throw Error(message, "name a file, not a folder");
    case ENAMETOOLONG:
      throw Error(message, "choose a shorter name");
    default:
      throw Error(message, "check the path and its disk");
  }
}

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const Descriptor file{open_or_throw(path, O_RDONLY, "cannot open")};
  size_ = regular_file_size(file.value, path);
  if (size_ == 0) return;
  void* address = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.value, 0);
  if (address == MAP_FAILED) throw_system_error("cannot map", path, errno);
  data_ = static_cast<const std::byte*>(address);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release(std::span<const std::byte> range) const noexcept {
  if (range.empty() || data_ == nullptr) return;
  // A read maps pages around those it touches, up to a huge page, so that is what is given back. Neighbours lose
  // nothing: their pages come back from the file.
  constexpr uintptr_t kUnit = uintptr_t{2} << 20;
  const auto first = reinterpret_cast<uintptr_t>(data_), last = first + size_;
  const auto wanted = reinterpret_cast<uintptr_t>(range.data());
  const uintptr_t begin = std::max(first, wanted / kUnit * kUnit);
  const uintptr_t end = std::min(last, (wanted + range.size() + kUnit - 1) / kUnit * kUnit);
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  std::error_code ignored;
  const std::filesystem::file_status status = std::filesystem::status(path_, ignored);
  // The rename at the end would put a plain file in the place of a device.
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    throw Error(fmt::format("cannot write {}: not a regular file", path_.string()),
                "name a file, not a folder, pipe or device");
  }
  remove_stale_temporaries(path_);
  open_temporary();
}

void AtomicFile::open_temporary() {
  static std::atomic<unsigned> counter{0};
  while (true) {
    temporary_ = folder_of(path_) / fmt::format("{}{}-{}", temporary_prefix(path_), ::getpid(), counter++);
    descriptor_ = ::open(temporary_.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno == EEXIST) continue;
    if (descriptor_ < 0) throw_system_error("cannot write", path_, errno);
    // Between open and lock another writer may have taken the file for a leftover and removed it: then once more.
    struct stat status {};
    if (::flock(descriptor_, LOCK_EX) != 0 || ::fstat(descriptor_, &status) != 0 || status.st_nlink > 0) return;
    ::close(descriptor_);
  }
}

AtomicFile::~AtomicFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  if (::unlink(temporary_.c_str()) != 0) {
    log_warning(fmt::format("cannot remove {}: {}", temporary_.string(), std::strerror(errno)));
  }
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  write_at(position_, bytes);
  position_ += bytes.size();
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }

void AtomicFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0) {
      if (errno == EINTR) continue;
      throw_system_error("cannot write", path_, errno);
    }
    offset += static_cast<uint64_t>(written);
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void AtomicFile::reserve(uint64_t size) {
  if (size == 0 || ::fallocate(descriptor_, FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(size)) == 0) return;
  if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG) {
    throw_system_error(fmt::format("cannot reserve {} bytes for", size), path_, errno);
  }
}

void AtomicFile::flush() {
  if (::fsync(descriptor_) != 0) throw_system_error("cannot flush", path_, errno);
}

void AtomicFile::commit() {
  flush();
  if (::close(std::exchange(descriptor_, -1)) != 0) {
    const int reason = errno;
    ::unlink(temporary_.c_str());
    throw_system_error("cannot write", path_, reason);
  }
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int reason = errno;
    ::unlink(temporary_.c_str());
    throw_system_error("cannot write", path_, reason);
  }
  sync_folder(folder_of(path_));
}

std::string read_text(const std::filesystem::path& path, uint64_t limit) {
  const Descriptor file{open_or_throw(path, O_RDONLY, "cannot open")};
  const size_t size = regular_file_size(file.value, path);
  if (size > limit) {
    throw ConfigError(fmt::format("{} has {} bytes, more than the limit of {}", path.string(), size, limit));
  }
  std::string text(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t got = ::read(file.value, text.data() + done, size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_system_error("cannot read", path, errno);
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  text.resize(done);
  return text;
}

void write_text(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void sync_folder(const std::filesystem::path& folder) {
  const std::filesystem::path target = folder.empty() ? std::filesystem::path(".") : folder;
  const Descriptor descriptor{open_or_throw(target, O_RDONLY | O_DIRECTORY, "cannot open folder")};
  // Some file systems cannot sync folders; the rename itself has happened.
  if (::fsync(descriptor.value) != 0 && errno != EINVAL && errno != EROFS) {
    throw_system_error("cannot flush folder", target, errno);
  }
}

uint64_t free_disk_bytes(const std::filesystem::path& path) {
  std::filesystem::path existing = std::filesystem::absolute(path);
  std::error_code ignored;
  while (!std::filesystem::exists(existing, ignored) && existing.has_parent_path() &&
         existing != existing.parent_path()) {
    existing = existing.parent_path();
  }
  struct statvfs status {};
  if (::statvfs(existing.c_str(), &status) != 0) throw_system_error("cannot look at the disk of", existing, errno);
  return uint64_t{status.f_bavail} * uint64_t{status.f_frsize};
}

}  // namespace cinch
