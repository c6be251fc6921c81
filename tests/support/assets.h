// Where tests find files: the repository's own, and the optional larger assets beside the checkout.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

namespace cinch {

/// A file of the repository.
std::filesystem::path repo_file(const std::string& relative);
/// A file of ../shared/assets; tests skip visibly where it is absent.
std::filesystem::path asset(const std::string& relative);

/// A fresh folder, removed with everything in it at the end of the scope.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }
  /// What it holds, sorted.
  std::vector<std::string> names() const;

 private:
  std::filesystem::path path_;
};

}  // namespace cinch

#define CINCH_NEEDS_ASSET(path)                                                                  \
  do {                                                                                           \
    if (!std::filesystem::exists(path)) GTEST_SKIP() << "skipped: " << (path) << " is not here"; \
  } while (false)
