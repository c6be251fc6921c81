// Which list of rotary slots a layer gets: its own best, one that all layers share, or one that a stock runtime's table
// of frequencies can hold (docs/conversion.md, the latent method, B).
#pragma once

#include <optional>
#include <vector>

#include "convert/conversion_recipe.h"
#include "convert/solvers/rotary_slots.h"

namespace cinch {

/// Slots and the groups of planes that they serve.
struct SlotList {
  std::vector<PlaneGroup> groups;
  std::vector<RotarySlot> slots;
};

/// Lists of rotary_dim / 2 slots whose frequencies fall by one factor from that of plane 0: what a runtime computes
/// from a base alone. From every plane's own frequency to an even spread over all of them; each slot serves the plane
/// nearest to it and, where rotations are slow, that plane's neighbours. Throws UsageError when there are fewer planes
/// than slots.
std::vector<SlotList> geometric_lists(const HeadPlanes& planes, int64_t rotary_dim);

/// What one layer says about the slots of a rotary key of `rotary_dim` numbers.
class SlotVote {
 public:
  SlotVote(const SourceHeads& heads, const LatentMoments& moments, int64_t rotary_dim, SlotRule rule,
           const LagLaw& law = {});

 private:
  friend SlotList choose_slot_list(const std::vector<const SlotVote*>& layers);

  int64_t rotary_dim_;
  std::optional<RotarySurvey> survey_;  // own, shared
  std::vector<SlotList> lists_;         // geometric
  std::vector<double> lost_;            // score energy that each of them loses
};

/// The list that serves these layers best, all asked with one width and one rule; a single layer: its own.
SlotList choose_slot_list(const std::vector<const SlotVote*>& layers);

}  // namespace cinch
