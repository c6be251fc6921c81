#include "tests/support/assets.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

namespace cinch {

std::filesystem::path repo_file(const std::string& relative) {
  return std::filesystem::path(CINCH_SOURCE_DIR) / relative;
}

std::filesystem::path asset(const std::string& relative) {
  return std::filesystem::path(CINCH_SOURCE_DIR) / "../shared/assets" / relative;
}

TempFolder::TempFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "cinch-test-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("cannot make a temporary folder");
  path_ = pattern;
}

std::vector<std::string> TempFolder::names() const {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path_)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

TempFolder::~TempFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace cinch
