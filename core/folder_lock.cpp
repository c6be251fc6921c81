#include "core/folder_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

#include "core/errors.h"
#include "core/files.h"

namespace cinch {

FolderLock::FolderLock(const std::filesystem::path& folder, const std::string& work) {
  const std::filesystem::path file = folder / "lock";
  descriptor_ = ::open(file.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0666);
  if (descriptor_ < 0) throw_system_error("cannot write", file, errno);
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    ::close(descriptor_);
    throw Error(fmt::format("{}: another process is {}", folder.string(), work),
                "wait for it, or choose another output");
  }
}

FolderLock::~FolderLock() { ::close(descriptor_); }

}  // namespace cinch
