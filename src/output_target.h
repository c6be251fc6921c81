// Where a command may write a model: nothing of the user's may be lost, with --force either.
#pragma once

#include <filesystem>

namespace cinch {

/// Refuses `out` when it is the source model, lies inside it or holds it, when it is neither a file nor a folder (a
/// device), and when `force` would replace a folder that holds no model. Throws UsageError.
void check_output_target(const std::filesystem::path& model, const std::filesystem::path& out, bool force);

}  // namespace cinch
