#include <fmt/format.h>
#include <fmt/ranges.h>

#include "convert/transform.h"
#include "convert/transforms/grouped_transform.h"
#include "convert/transforms/latent_transform.h"
#include "core/errors.h"
#include "core/json.h"

namespace cinch {

const std::vector<const Transform*>& transforms() {
  static const std::vector<const Transform*> list = {
      &aligned_transform(),  &procrustes_transform(),   &mean_transform(),      &first_transform(),
      &weighted_transform(), &balanced_pca_transform(), &weight_svd_transform()};
  return list;
}

std::string default_method(TargetKind target) { return target == TargetKind::mla ? "weighted" : "aligned"; }

const Transform& transform(const std::string& name) {
  std::vector<std::string> known;
  for (const Transform* candidate : transforms()) {
    if (candidate->name() == name) return *candidate;
    known.push_back(candidate->name());
  }
  const std::string nearest = nearest_word(name, known);
  throw UsageError(
      fmt::format("unknown method '{}'{}", name, nearest.empty() ? "" : fmt::format("; did you mean '{}'?", nearest)),
      fmt::format("known methods: {}", fmt::join(known, ", ")));
}

}  // namespace cinch
