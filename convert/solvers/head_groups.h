// Which source KV heads share a target head: swap descent on what a merge would discard.
#pragma once

#include <cstdint>
#include <vector>

#include "convert/solvers/moments.h"

namespace cinch {

/// Order of the K source heads (group j is places j*g..j*g+g-1) with the least cost found by swap descent from adjacent
/// heads and from `random_starts` shuffles. Cost of a group: the share of its key energy beyond rank one per plane plus
/// the share of its value energy beyond D dims, from moments in the canonical basis (gauge.h). Where there are many
/// possible groups, a group's cost is the mean over its pairs. Groups are listed by their first head, heads of a group
/// in ascending order; deterministic for a seed.
std::vector<int64_t> search_groups(const HeadPlanes& planes, const HeadMoments& moments, int64_t groups,
                                   int random_starts, uint64_t seed);

}  // namespace cinch
