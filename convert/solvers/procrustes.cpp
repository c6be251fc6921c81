#include "convert/solvers/procrustes.h"

#include <ATen/ATen.h>

namespace cinch {
namespace {

constexpr int kRounds = 100;
constexpr double kSettled = 1e-13;

/// Nearest orthogonal matrix to each of m (g, n, n).
at::Tensor polar(const at::Tensor& m) {
  const auto [u, s, vh] = at::linalg_svd(m, /*full_matrices=*/false);
  return at::matmul(u, vh);
}

/// The unit factor of each entry; 1 where the entry is 0.
at::Tensor phase(const at::Tensor& z) {
  const at::Tensor size = z.abs();
  return at::where(size > 0, z / size, at::ones_like(z));
}

}  // namespace

at::Tensor plane_moments(const at::Tensor& moment) {
  const int64_t planes = moment.size(1) / 2;
  const auto part = [&](int64_t row, int64_t column) {
    return moment.slice(1, row * planes, (row + 1) * planes)
        .slice(3, column * planes, (column + 1) * planes)
        .diagonal(0, 1, 3)
        .permute({2, 0, 1});
  };
  return at::complex((part(0, 0) + part(1, 1)).contiguous(), (part(1, 0) - part(0, 1)).contiguous());
}

at::Tensor align_orthogonal(const at::Tensor& moment) {
  // maps_a = polar(E m x_a^T) with m the mean of the aligned heads.
  at::Tensor maps = polar(moment.select(0, 0).transpose(0, 1));
  for (int round = 0; round < kRounds; ++round) {
    const at::Tensor next = polar(at::einsum("bij,bjak->aik", {maps, moment}));
    const double change = (next - maps).abs().max().item<double>();
    maps = next;
    if (change < kSettled) break;
  }
  return maps;
}

at::Tensor align_phases(const at::Tensor& moment) {
  const at::Tensor s = plane_moments(moment);
  at::Tensor factors = phase(s.select(1, 0));  // (P, g): E k_0 conj(k_a)
  for (int round = 0; round < kRounds; ++round) {
    const at::Tensor next = phase(at::matmul(factors.unsqueeze(1), s).squeeze(1));
    const double change = (next - factors).abs().max().item<double>();
    factors = next;
    if (change < kSettled) break;
  }
  return factors.transpose(0, 1).contiguous();
}

}  // namespace cinch
