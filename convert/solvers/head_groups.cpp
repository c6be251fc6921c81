#include "convert/solvers/head_groups.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>

#include "convert/solvers/key_alignment.h"
#include "convert/solvers/linear_algebra.h"

namespace cinch {
namespace {

using Members = std::vector<int64_t>;

/// Cost of groups, each worked out once.
class GroupCost {
 public:
  GroupCost(const HeadPlanes& planes, const HeadMoments& moments, int64_t size)
      : planes_(planes), moments_(moments), exact_(few_sets(moments.key.size(0), size)) {}

  double operator()(Members members) {
    std::sort(members.begin(), members.end());
    if (exact_ || members.size() == 2) return discarded(members);
    double sum = 0, pairs = 0;
    for (size_t a = 0; a < members.size(); ++a) {
      for (size_t b = a + 1; b < members.size(); ++b, ++pairs) sum += discarded({members[a], members[b]});
    }
    return pairs > 0 ? sum / pairs : 0.0;
  }

 private:
  static bool few_sets(int64_t heads, int64_t size) {
    constexpr double kMostSets = 2000;
    double sets = 1;
    for (int64_t i = 0; i < size; ++i) sets = sets * static_cast<double>(heads - i) / static_cast<double>(i + 1);
    return sets <= kMostSets;
  }

  double discarded(const Members& members) {
    const auto known = known_.find(members);
    if (known != known_.end()) return known->second;
    const at::Tensor index = at::tensor(members, at::kLong);
    const auto own = [&](const at::Tensor& m) { return m.index_select(0, index).index_select(2, index); };
    const int64_t d = planes_.head_dim, width = d * index.size(0);
    const double key = rank_one_keys(planes_, {.key = own(moments_.key), .query = {}}).kept;
    const at::Tensor values = at::linalg_eigvalsh(own(moments_.value).reshape({width, width}));
    const double total = values.sum().item<double>();
    const double value = total > 0 ? values.slice(0, width - d, width).sum().item<double>() / total : 1.0;
    return known_[members] = (1 - key) + (1 - value);
  }

  const HeadPlanes& planes_;
  const HeadMoments& moments_;
  bool exact_;
  std::map<Members, double> known_;
};

/// Swaps pairs of heads of different groups while that lowers the cost; returns the total.
double descend(std::vector<Members>& groups, GroupCost& cost) {
  std::vector<double> costs;
  for (const Members& members : groups) costs.push_back(cost(members));
  bool improved = true;
  while (improved) {
    improved = false;
    for (size_t a = 0; a < groups.size(); ++a) {
      for (size_t b = a + 1; b < groups.size(); ++b) {
        for (int64_t& x : groups[a]) {
          for (int64_t& y : groups[b]) {
            std::swap(x, y);
            const double cost_a = cost(groups[a]), cost_b = cost(groups[b]);
            if (cost_a + cost_b < costs[a] + costs[b] - 1e-12) {
              costs[a] = cost_a;
              costs[b] = cost_b;
              improved = true;
            } else {
              std::swap(x, y);
            }
          }
        }
      }
    }
  }
  return std::accumulate(costs.begin(), costs.end(), 0.0);
}

}  // namespace

std::vector<int64_t> search_groups(const HeadPlanes& planes, const HeadMoments& moments, int64_t groups,
                                   int random_starts, uint64_t seed) {
  const int64_t heads = moments.key.size(0), size = heads / groups;
  GroupCost cost(planes, moments, size);
  std::mt19937_64 random(seed);
  std::vector<int64_t> order(heads);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::vector<Members> best;
  double best_cost = 0;
  for (int start = 0; start <= random_starts; ++start) {
    std::vector<Members> candidate(groups);
    for (int64_t i = 0; i < heads; ++i) candidate[i / size].push_back(order[i]);
    const double total = descend(candidate, cost);
    if (best.empty() || total < best_cost - 1e-12) {
      best_cost = total;
      best = candidate;
    }
    for (int64_t i = heads - 1; i > 0; --i) std::swap(order[i], order[random() % static_cast<uint64_t>(i + 1)]);
  }
  for (Members& members : best) std::sort(members.begin(), members.end());
  std::sort(best.begin(), best.end());
  std::vector<int64_t> result;
  for (const Members& members : best) result.insert(result.end(), members.begin(), members.end());
  return result;
}

}  // namespace cinch
