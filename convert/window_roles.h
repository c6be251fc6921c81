// What each calibration window is used for: so that what is chosen is not judged by what it was fitted on, and what is
// printed is measured on text that nothing has seen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cinch {

/// Indices of windows, each list sorted; no window is in two lists.
struct WindowRoles {
  std::vector<int64_t> fit;         // every solver
  std::vector<int64_t> validation;  // choose dampings and groups, then join the last output refit; may be empty
  std::vector<int64_t> held_out;    // only measure; may be empty

  /// The windows that errors are reported on: held out, or the next best there is.
  const std::vector<int64_t>& measured() const;
  /// The windows that choices are made on.
  const std::vector<int64_t>& judged() const { return validation.empty() ? fit : validation; }
};

/// One window in eight (4 at most) is held out and one in four of the rest (8 at most) validates, spread evenly over
/// each source and over the sources. `sources` has the index of a source per window.
WindowRoles choose_roles(const std::vector<size_t>& sources);

}  // namespace cinch
