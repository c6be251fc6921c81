#include "convert/transforms/slot_lists.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/errors.h"

namespace cinch {
namespace {

constexpr int kSpacings = 9;        // geometric lists that are tried
constexpr double kRoundOff = 1e-9;  // of a logarithm of a frequency

/// The list of slots whose log-frequencies lie `step` apart; none where a slot would have no plane near it.
std::optional<SlotList> geometric_list(const HeadPlanes& planes, const std::vector<double>& logs, int64_t slots,
                                       double step) {
  SlotList list;
  int64_t next = 0;  // first plane without a group
  for (int64_t s = 0; s < slots; ++s) {
    const double wanted = logs[0] - static_cast<double>(s) * step;
    int64_t end = next, nearest = next;
    for (; end < planes.rotated && logs[end] >= wanted - step / 2 - kRoundOff; ++end) {
      if (std::abs(logs[end] - wanted) < std::abs(logs[nearest] - wanted)) nearest = end;
    }
    if (end == next) return std::nullopt;
    const int64_t size = std::min(planes_per_group(planes, nearest), end - next);
    const int64_t first = std::clamp(nearest - (size - 1) / 2, next, end - size);
    append_plane_groups(planes, {next, first - next}, /*single=*/false, list.groups);
    list.slots.push_back({static_cast<int64_t>(list.groups.size()), std::exp(wanted)});
    list.groups.push_back({first, size});
    append_plane_groups(planes, {first + size, end - first - size}, /*single=*/false, list.groups);
    next = end;
  }
  append_plane_groups(planes, {next, planes.planes - next}, /*single=*/false, list.groups);
  return list;
}

}  // namespace

std::vector<SlotList> geometric_lists(const HeadPlanes& planes, int64_t rotary_dim) {
  const int64_t slots = rotary_dim / 2;
  if (slots > planes.rotated) {
    throw UsageError(
        fmt::format("a table of {} frequencies for {} rotated planes is not possible", slots, planes.rotated));
  }
  const at::Tensor log = planes.frequency.slice(0, 0, planes.rotated).log().contiguous();
  const std::vector<double> logs(log.const_data_ptr<double>(), log.const_data_ptr<double>() + log.numel());
  const double plane_step = logs.size() > 1 ? logs[0] - logs[1] : 0;
  const double widest = slots > 0 ? static_cast<double>(planes.rotated) / static_cast<double>(slots) : 1;
  std::vector<SlotList> lists;
  for (int i = 0; i < kSpacings; ++i) {
    const double spacing = 1 + (widest - 1) * i / (kSpacings - 1);
    if (auto list = geometric_list(planes, logs, slots, spacing * plane_step)) lists.push_back(std::move(*list));
    if (widest == 1) break;
  }
  return lists;
}

SlotVote::SlotVote(const SourceHeads& heads, const LatentMoments& moments, int64_t rotary_dim, SlotRule rule,
                   const LagLaw& law)
    : rotary_dim_(rotary_dim) {
  if (rule != SlotRule::geometric) {
    // Enough slots for every rotated plane of every head: each keeps its own frequency, and nothing is lost.
    const bool all = rotary_dim >= 2 * heads.spec.n_kv_heads * heads.planes.rotated;
    survey_.emplace(heads, moments, plane_groups(heads.planes, all), law);
    return;
  }
  lists_ = geometric_lists(heads.planes, rotary_dim);
  for (const SlotList& list : lists_) {
    lost_.push_back(RotarySurvey(heads, moments, list.groups, law).energies(list.slots).lost);
  }
}

SlotList choose_slot_list(const std::vector<const SlotVote*>& layers) {
  const SlotVote& first = *layers.at(0);
  if (first.survey_) {
    std::vector<const RotarySurvey*> surveys;
    for (const SlotVote* layer : layers) surveys.push_back(&*layer->survey_);
    return {first.survey_->groups(), choose_slots(surveys, first.rotary_dim_)};
  }
  std::vector<double> lost(first.lost_.size(), 0.0);
  for (const SlotVote* layer : layers) {
    for (size_t i = 0; i < lost.size(); ++i) lost[i] += layer->lost_.at(i);
  }
  return first.lists_[static_cast<size_t>(std::min_element(lost.begin(), lost.end()) - lost.begin())];
}

}  // namespace cinch
