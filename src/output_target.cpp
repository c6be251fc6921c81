#include "src/output_target.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/errors.h"

namespace cinch {
namespace {

namespace fs = std::filesystem;

/// With links followed, without a trailing slash.
fs::path resolved(const fs::path& path) {
  std::error_code error;
  fs::path result = fs::weakly_canonical(fs::absolute(path), error);
  if (error) result = fs::absolute(path).lexically_normal();
  return result.has_filename() ? result : result.parent_path();
}

bool lies_inside(const fs::path& inner, const fs::path& outer) {
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

}  // namespace

void check_output_target(const fs::path& model, const fs::path& out, bool force) {
  const fs::path source = resolved(model), target = resolved(out);
  const char* relation = source == target              ? "is the source model itself"
                         : lies_inside(target, source) ? "lies inside the source model"
                         : lies_inside(source, target) ? "holds the source model"
                                                       : nullptr;
  if (relation != nullptr) {
    throw UsageError(fmt::format("OUT: {} {}", out.string(), relation), "the source is kept: write beside it");
  }
  std::error_code error;
  const fs::file_status status = fs::status(target, error);
  if (!fs::exists(status)) return;
  if (!fs::is_directory(status) && !fs::is_regular_file(status)) {
    throw UsageError(fmt::format("OUT: {} is neither a file nor a folder", out.string()), "choose another output");
  }
  if (force && fs::is_directory(status) && !fs::is_empty(target, error) && !fs::exists(target / "config.json", error)) {
    throw UsageError(fmt::format("OUT: {} is a folder that holds no model (there is no config.json)", out.string()),
                     "--force replaces models only: choose another output, or remove the folder yourself");
  }
}

}  // namespace cinch
