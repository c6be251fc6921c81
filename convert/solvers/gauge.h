// The free choices of basis in attention, and the one basis in which the solvers work.
//
// A complex factor per rotary plane on K (its inverse conjugate on Q), any invertible map among unrotated dims, and any
// invertible map on V (its inverse on O) leave a model's function alone. The solvers work where each source head has
// queries of unit power per plane and values whose squared length is what they add to the residual stream. What is left
// free there is a phase or an orthogonal map, which no damping term sees, so that a conversion does not depend on the
// basis in which its source happens to be stored.
#pragma once

#include "convert/solvers/merged_heads.h"
#include "convert/solvers/moments.h"

namespace cinch {

/// Brings heads and moments (in place) to the basis above; o then carries the residual gain on its rows. QK-normed
/// queries and keys stay as they are: their norm fixes the basis.
void to_canonical(SourceHeads& heads, HeadMoments& moments, const ResidualPath& path);

/// Removes the residual gain from merged.o again and sets the free scales of shared heads: each plane of a shared key
/// gets the mean power of its sources' planes, a shared value the mean power of its sources. `source` are moments
/// before to_canonical, `canonical` after.
void to_natural_scale(MergedHeads& merged, const HeadMoments& source, const HeadMoments& canonical,
                      const ResidualPath& path, bool qk_norm);

}  // namespace cinch
