#include "core/program_paths.h"

#include <array>

namespace cinch {

namespace fs = std::filesystem;

fs::path program_folder() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  return error ? fs::path() : program.parent_path();
}

fs::path bundled_folder(const std::string& name) {
  std::error_code error;
  const fs::path start = program_folder();
  if (start.empty()) return {};
  const fs::path installed = (start / "../share/cinch" / name).lexically_normal();
  if (fs::is_directory(installed, error)) return installed;
  for (fs::path folder = start;; folder = folder.parent_path()) {
    for (const fs::path& candidate : std::array{folder / "examples" / name, folder / name}) {
      if (fs::is_directory(candidate, error)) return candidate;
    }
    if (folder == folder.parent_path()) return {};
  }
}

}  // namespace cinch
