// A folder that one process at a time works in.
#pragma once

#include <filesystem>
#include <string>

namespace cinch {

/// Holds FOLDER/lock, which the kernel lets go of however the process ends. The folder is there before.
class FolderLock {
 public:
  /// `work`: what another holder would be doing, "converting to this output". Throws Error saying so when there is one.
  FolderLock(const std::filesystem::path& folder, const std::string& work);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int descriptor_ = -1;
};

}  // namespace cinch
