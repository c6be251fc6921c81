// Normal equations of a ridge refit of o_proj: the change of its rows that takes most of a residual away.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace cinch {

/// Sums over tokens, fp64: n features (the last is 1 where a bias is fitted), E outputs.
struct OutputNormal {
  at::Tensor gram;                  // (n, n) features
  at::Tensor cross;                 // (n, E) features times residual
  double residual = 0, target = 0;  // squared residual and target

  bool empty() const { return !gram.defined(); }
  void add(const OutputNormal& other);
  /// Loss after a change (n, E) of the rows.
  double loss(const at::Tensor& change) const;
};

/// These sums while windows are added.
class OutputSums {
 public:
  /// features (T, n), error and goal (T, E), weights (T) or undefined for ones.
  void add(const at::Tensor& features, const at::Tensor& error, const at::Tensor& goal, const at::Tensor& weights);
  /// Empty when nothing was added.
  OutputNormal normal() const;

 private:
  at::Tensor gram_, cross_, residual_, target_;
};

/// How changes are shrunk: features in `blocks` of equal size, each in proportion to its mean power, so that the scale
/// of a block, which is free, does not matter. The bias row, the last where there is one, is not shrunk.
struct OutputPenalty {
  int64_t blocks = 1;
  bool bias = false;
};
/// (n, E)
at::Tensor ridge_change(const OutputNormal& normal, double lambda, const OutputPenalty& penalty);

struct OutputChange {
  at::Tensor rows;    // (n, E), undefined when lambda is 0
  double lambda = 0;  // 0: no change was best
  double loss = 0;    // of the judge, over that of the target
};
/// The lambda of least loss on `validation` (on `fit` when it is empty), fitted once more on both.
OutputChange best_change(OutputNormal fit, const OutputNormal& validation, const std::vector<double>& lambdas,
                         const OutputPenalty& penalty);

}  // namespace cinch
