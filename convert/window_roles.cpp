#include "convert/window_roles.h"

#include <algorithm>
#include <iterator>
#include <map>

namespace cinch {
namespace {

constexpr int64_t kMostHeldOut = 4, kHeldOutPart = 8;
constexpr int64_t kMostValidation = 8, kValidationPart = 4;

/// `count` of the windows, spread evenly over each source and over the sources.
std::vector<int64_t> spread(const std::vector<int64_t>& windows, const std::vector<size_t>& sources, int64_t count) {
  std::map<size_t, std::vector<int64_t>> of_source;
  for (const int64_t w : windows) of_source[sources[static_cast<size_t>(w)]].push_back(w);
  // Shares first, each time one more for the source that has given the smallest part of its windows.
  std::map<size_t, int64_t> shares;
  for (int64_t i = 0; i < count; ++i) {
    const auto part = [&](size_t source) {
      return static_cast<double>(shares[source]) / static_cast<double>(of_source[source].size());
    };
    const auto next = std::min_element(of_source.begin(), of_source.end(),
                                       [&](const auto& a, const auto& b) { return part(a.first) < part(b.first); });
    ++shares[next->first];
  }
  std::vector<int64_t> chosen;
  for (const auto& [source, share] : shares) {
    const std::vector<int64_t>& own = of_source[source];
    for (int64_t i = 0; i < share; ++i) {
      chosen.push_back(own[static_cast<size_t>(2 * i + 1) * own.size() / static_cast<size_t>(2 * share)]);
    }
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

std::vector<int64_t> without(const std::vector<int64_t>& windows, const std::vector<int64_t>& taken) {
  std::vector<int64_t> rest;
  std::set_difference(windows.begin(), windows.end(), taken.begin(), taken.end(), std::back_inserter(rest));
  return rest;
}

}  // namespace

const std::vector<int64_t>& WindowRoles::measured() const { return held_out.empty() ? judged() : held_out; }

WindowRoles choose_roles(const std::vector<size_t>& sources) {
  WindowRoles roles;
  for (size_t w = 0; w < sources.size(); ++w) roles.fit.push_back(static_cast<int64_t>(w));
  const auto windows = static_cast<int64_t>(sources.size());
  roles.held_out = spread(roles.fit, sources, std::min(kMostHeldOut, windows / kHeldOutPart));
  roles.fit = without(roles.fit, roles.held_out);
  const auto rest = static_cast<int64_t>(roles.fit.size());
  roles.validation = spread(roles.fit, sources, std::min(kMostValidation, rest / kValidationPart));
  roles.fit = without(roles.fit, roles.validation);
  return roles;
}

}  // namespace cinch
