#include "convert/solvers/rotary_slots.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "convert/solvers/linear_algebra.h"
#include "convert/solvers/moments.h"
#include "core/errors.h"

namespace cinch {
namespace {

constexpr double kSingleAbove = 0.07, kPairAbove = 0.004;
constexpr double kWidestGroup = 3.0;  // ratio of the frequencies at its ends: 1.43^3 where the sizes were measured
constexpr double kQueryFloor = 1e-2;  // of a KV head's mean query power per plane

/// Covariance of complex planes (n, n) from the real one of [re; im] (2n, 2n).
at::Tensor complex_covariance(const at::Tensor& a) {
  const int64_t n = a.size(0) / 2;
  const at::Tensor xx = a.slice(0, 0, n).slice(1, 0, n), yy = a.slice(0, n).slice(1, n);
  const at::Tensor yx = a.slice(0, n).slice(1, 0, n);
  return at::complex(xx + yy, yx - yx.transpose(0, 1));
}

/// |x|^2 of each plane from the second moment (..., D, D) of internal coordinates, (..., P).
at::Tensor plane_power(const at::Tensor& moment) {
  const auto halves = moment.diagonal(0, -2, -1).chunk(2, -1);
  return halves[0] + halves[1];
}

at::Tensor blended_lags(const at::Tensor& measured, const LagLaw& law, int64_t window) {
  std::vector<at::Tensor> rows;
  for (int64_t h = 0; h < measured.size(0); ++h) {
    // A head that no key matters to may get any law.
    const at::Tensor lags = measured[h].sum().item<double>() > 0 ? measured[h] : at::ones_like(measured[h]);
    rows.push_back(lag_weights(lags, law.tail, law.context, window));
  }
  return at::stack(rows);
}

}  // namespace

int64_t planes_per_group(const HeadPlanes& planes, int64_t plane) {
  const double frequency = planes.frequency[plane].item<double>();
  const int64_t most = frequency >= kSingleAbove ? 1 : frequency >= kPairAbove ? 2 : 4;
  if (most == 1 || planes.rotated < 2) return most;
  const int64_t next = std::min(plane + 1, planes.rotated - 1);
  const double ratio = planes.frequency[next - 1].item<double>() / planes.frequency[next].item<double>();
  if (!(ratio > 1)) return most;
  return std::clamp<int64_t>(1 + static_cast<int64_t>(std::log(kWidestGroup) / std::log(ratio)), 1, most);
}

std::vector<PlaneGroup> plane_groups(const HeadPlanes& planes, bool single) {
  std::vector<PlaneGroup> groups;
  append_plane_groups(planes, {0, planes.planes}, single, groups);
  return groups;
}

void append_plane_groups(const HeadPlanes& planes, const PlaneGroup& part, bool single,
                         std::vector<PlaneGroup>& groups) {
  const int64_t stop = part.first + part.planes;
  for (int64_t f = part.first; f < stop;) {
    const bool alone = single || f >= planes.rotated;
    const int64_t most = alone ? 1 : planes_per_group(planes, f);
    const int64_t size = std::min(most, (f < planes.rotated ? std::min(planes.rotated, stop) : stop) - f);
    groups.push_back({f, size});
    f += size;
  }
}

at::Tensor component_rows(const at::Tensor& rows) {
  const at::Tensor re = at::real(rows), im = at::imag(rows);
  return at::stack({at::cat({re, -im}, -1), at::cat({im, re}, -1)}, 1)
      .reshape({2 * rows.size(0), 2 * rows.size(1) * rows.size(2)});
}

RotarySurvey::RotarySurvey(const SourceHeads& heads, const LatentMoments& moments, std::vector<PlaneGroup> groups,
                           const LagLaw& law)
    : groups_(std::move(groups)), planes_(heads.planes), kv_heads_(heads.spec.n_kv_heads) {
  lags_ = blended_lags(moments.lags, law, heads.spec.window);
  unit_ = heads.spec.scale * heads.spec.scale / 2 / std::max(moments.output_energy, 1e-300);
  const at::Tensor query_power = plane_power(moments.query).clamp_min(1e-300);
  for (const PlaneGroup& group : groups_) bases_.push_back(basis(group, heads, moments, query_power));
}

RotarySurvey::Basis RotarySurvey::basis(const PlaneGroup& group, const SourceHeads& heads, const LatentMoments& moments,
                                        const at::Tensor& query_power) const {
  const int64_t k = kv_heads_, d = planes_.head_dim, f = group.planes, n = k * f;
  // Rows of z that the group's planes hold: real parts of all heads, then imaginary parts.
  const at::Tensor plane = at::arange(group.first, group.first + f, at::kLong);
  const at::Tensor real = (at::arange(k, at::kLong).unsqueeze(1) * d + plane).flatten();
  const at::Tensor rows = at::cat({real, real + planes_.planes});
  const at::Tensor covariance = complex_covariance(moments.joint.index_select(0, rows).index_select(1, rows));

  const at::Tensor all = query_power.reshape({k, heads.rep(), planes_.planes}).sum(1);  // (K, P)
  const at::Tensor weight = (all + kQueryFloor * all.mean(1, true)).slice(1, group.first, group.first + f).reshape({n});
  const at::Tensor root = weight.sqrt();
  const Eigen eigen = eigen_descending(root.unsqueeze(1) * covariance * root);
  const at::Tensor adjoint = eigen.vectors.conj().transpose(0, 1);
  return {.key = adjoint * root,
          .query = adjoint / root,
          .power = eigen.values.clamp_min(0),
          .query_power = query_power.slice(1, group.first, group.first + f),
          .key_power = at::real(covariance.diagonal()).reshape({k, f})};
}

at::Tensor RotarySurvey::phases(const at::Tensor& differences) const {
  const at::Tensor angles = at::outer(at::arange(lags_.size(1), at::kDouble), differences);
  return at::complex(at::matmul(lags_, angles.cos()), -at::matmul(lags_, angles.sin()));
}

at::Tensor RotarySurvey::group_frequencies(int64_t group) const {
  const PlaneGroup& g = groups_[group];
  return planes_.frequency.slice(0, g.first, g.first + g.planes);
}

at::Tensor RotarySurvey::candidates(int64_t group) const {
  const at::Tensor w = group_frequencies(group);
  if (w.size(0) == 1) return w;
  return at::linspace(std::log(w.max().item<double>()), std::log(w.min().item<double>()), 4 * w.size(0) + 1,
                      at::kDouble)
      .exp();
}

at::Tensor RotarySurvey::kept(int64_t group, const at::Tensor& frequencies) const {
  const Basis& b = bases_[group];
  const int64_t f = groups_[group].planes, rep = b.query_power.size(0) / kv_heads_;
  const at::Tensor energy = b.query_power * b.key_power.repeat_interleave(rep, 0);  // (H, f)
  const at::Tensor differences = group_frequencies(group).unsqueeze(0) - frequencies.unsqueeze(1);
  const at::Tensor share = phases(differences.flatten()).abs().square().reshape({-1, frequencies.size(0), f});
  return (share * energy.unsqueeze(1)).sum(2).sum(0) * unit_;
}

at::Tensor RotarySurvey::gains(int64_t group, double frequency) const {
  const at::Tensor w = group_frequencies(group);
  return component_energies(group, phases(w - frequency).abs().square() - phases(w).abs().square());
}

at::Tensor RotarySurvey::component_energies(int64_t group, const at::Tensor& factors) const {
  const Basis& b = bases_[group];
  const at::Tensor weight = (b.query_power * factors).reshape({kv_heads_, -1, factors.size(1)}).sum(1).flatten();
  return at::matmul(b.query.abs().square(), weight) * b.power * unit_;
}

RotarySurvey::Energies RotarySurvey::energies(const std::vector<RotarySlot>& slots) const {
  Energies result;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const auto group = static_cast<int64_t>(g);
    int64_t count = 0;
    double frequency = 0;
    for (const RotarySlot& slot : slots) {
      if (slot.group != group) continue;
      frequency = slot.frequency;
      ++count;
    }
    const at::Tensor w = group_frequencies(group);
    const at::Tensor order = at::argsort(gains(group, frequency), /*stable=*/true, -1, /*descending=*/true);
    const at::Tensor all = component_energies(group, at::ones({lags_.size(0), w.size(0)}, at::kDouble));
    const auto kept = [&](double at_frequency, const at::Tensor& which) {
      return component_energies(group, phases(w - at_frequency).abs().square())
          .index_select(0, which)
          .sum()
          .item<double>();
    };
    const double rotated = kept(frequency, order.slice(0, 0, count));
    result.rotated += rotated;
    result.lost += all.sum().item<double>() - rotated - kept(0, order.slice(0, count));
  }
  result.lost = std::max(result.lost, 0.0);  // round-off
  return result;
}

at::Tensor RotarySurvey::key_rows(int64_t group, const at::Tensor& basis) const {
  const PlaneGroup& g = groups_[group];
  at::Tensor rows = at::zeros({basis.size(0), kv_heads_, planes_.planes}, basis.options());
  rows.slice(2, g.first, g.first + g.planes).copy_(basis.reshape({basis.size(0), kv_heads_, g.planes}));
  return component_rows(rows);
}

at::Tensor RotarySurvey::query_rows(int64_t group, const at::Tensor& basis, const at::Tensor& factors) const {
  const PlaneGroup& g = groups_[group];
  const at::Tensor chosen = basis.reshape({basis.size(0), kv_heads_, g.planes});
  const int64_t heads = lags_.size(0), rep = heads / kv_heads_;
  std::vector<at::Tensor> result;
  for (int64_t h = 0; h < heads; ++h) {
    at::Tensor rows = at::zeros({basis.size(0), 1, planes_.planes}, chosen.options());
    rows.slice(2, g.first, g.first + g.planes).copy_(chosen.slice(1, h / rep, h / rep + 1) * factors[h].conj());
    result.push_back(component_rows(rows));
  }
  return at::stack(result);
}

RotaryMaps RotarySurvey::maps(const std::vector<RotarySlot>& slots) const {
  std::vector<double> inv_freq;
  std::vector<at::Tensor> key, query, rest_key, rest_query;
  for (const RotarySlot& slot : slots) inv_freq.push_back(slot.frequency);
  key.resize(slots.size());
  query.resize(slots.size());
  int64_t rotated = 0;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const auto group = static_cast<int64_t>(g);
    if (group_frequencies(group).max().item<double>() > 0) rotated += components(group);
  }
  // Where nothing loses its rotation any basis will do, and that of the source itself is not blurred by rounding maps.
  const bool everything = static_cast<int64_t>(slots.size()) == rotated;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const auto group = static_cast<int64_t>(g);
    std::vector<size_t> own;
    for (size_t i = 0; i < slots.size(); ++i) {
      if (slots[i].group == group) own.push_back(i);
    }
    const auto count = static_cast<int64_t>(own.size());
    const at::Tensor w = group_frequencies(group);
    const double frequency = own.empty() ? 0.0 : slots[own[0]].frequency;
    at::Tensor key_basis = bases_[group].key, query_basis = bases_[group].query;
    if (everything && count > 0) {
      key_basis = query_basis = at::eye(count, key_basis.options());
    } else {
      const at::Tensor order = at::argsort(gains(group, frequency), /*stable=*/true, -1, /*descending=*/true);
      key_basis = key_basis.index_select(0, order);
      query_basis = query_basis.index_select(0, order);
    }
    for (int64_t i = 0; i < count; ++i) {
      key[own[i]] = key_rows(group, key_basis.slice(0, i, i + 1));
      query[own[i]] = query_rows(group, query_basis.slice(0, i, i + 1), phases(w - frequency));
    }
    rest_key.push_back(key_rows(group, key_basis.slice(0, count)));
    rest_query.push_back(query_rows(group, query_basis.slice(0, count), phases(w)));
  }
  const int64_t width = kv_heads_ * planes_.head_dim, heads = lags_.size(0);
  key.push_back(at::zeros({0, width}, at::kDouble));  // there may be no slot at all
  query.push_back(at::zeros({heads, 0, planes_.head_dim}, at::kDouble));
  return {.inv_freq = at::tensor(inv_freq, at::kDouble),
          .rotary_key = at::cat(key, 0),
          .rest_key = at::cat(rest_key, 0),
          .rotary_query = at::cat(query, 1),
          .rest_query = at::cat(rest_query, 1)};
}

std::vector<RotarySlot> choose_slots(const std::vector<const RotarySurvey*>& layers, int64_t rotary_dim) {
  struct Candidate {
    RotarySlot slot;
    double gain;
  };
  std::vector<Candidate> all;
  for (size_t g = 0; g < layers.at(0)->groups().size(); ++g) {
    const auto group = static_cast<int64_t>(g);
    const at::Tensor frequencies = layers[0]->candidates(group);
    at::Tensor kept = at::zeros_like(frequencies);
    for (const RotarySurvey* layer : layers) kept += layer->kept(group, frequencies);
    const double frequency = frequencies[kept.argmax()].item<double>();
    at::Tensor gains = at::zeros({layers[0]->components(group)}, at::kDouble);
    for (const RotarySurvey* layer : layers) gains += std::get<0>(layer->gains(group, frequency).sort(0, true));
    for (int64_t i = 0; i < gains.size(0); ++i) all.push_back({{group, frequency}, gains[i].item<double>()});
  }
  if (rotary_dim < 0 || rotary_dim % 2 != 0 || rotary_dim > 2 * static_cast<int64_t>(all.size())) {
    throw UsageError(fmt::format("a rotary key of {} numbers is not possible: it must be even and at most {}",
                                 rotary_dim, 2 * all.size()));
  }
  std::stable_sort(all.begin(), all.end(), [](const Candidate& a, const Candidate& b) { return a.gain > b.gain; });
  std::vector<RotarySlot> slots;
  for (int64_t i = 0; i < rotary_dim / 2; ++i) slots.push_back(all[i].slot);
  std::stable_sort(slots.begin(), slots.end(),
                   [](const RotarySlot& a, const RotarySlot& b) { return a.frequency > b.frequency; });
  return slots;
}

}  // namespace cinch
