#include <ATen/ATen.h>

#include <vector>

#include "attention/kernels/kernels.h"

namespace cinch {

std::vector<int64_t> document_lengths(const AttentionRequest& request) {
  const at::Tensor starts = request.documents.to(at::kCPU).contiguous();
  const int64_t* start = starts.const_data_ptr<int64_t>();
  std::vector<int64_t> lengths;
  for (int64_t i = 0, width = starts.size(1); i < starts.numel(); ++i) {
    if (i % width == 0 || start[i] == request.first_query + i % width) lengths.push_back(0);
    ++lengths.back();
  }
  return lengths;
}

at::Tensor run_by_document(const AttentionRequest& request,
                           const std::function<at::Tensor(const AttentionRequest&)>& kernel) {
  const int64_t batch = request.q.size(0), queries = request.q.size(2);
  const std::vector<int64_t> lengths = document_lengths(request);
  AttentionRequest part = request;
  part.documents.reset();
  if (static_cast<int64_t>(lengths.size()) == batch) return kernel(part);
  part.first_query = part.first_key = 0;  // distances are what counts
  // One split has one concatenation as its gradient; narrowing for each document would give each a tensor of full size.
  const auto pieces = [&](const at::Tensor& x) {
    return x.transpose(0, 1).flatten(1, 2).unsqueeze(0).split_with_sizes(lengths, 2);
  };
  const std::vector<at::Tensor> q = pieces(request.q), k = pieces(request.k), v = pieces(request.v);
  std::vector<at::Tensor> results;
  for (size_t i = 0; i < lengths.size(); ++i) {
    part.q = q[i];
    part.k = k[i];
    part.v = v[i];
    results.push_back(kernel(part));
  }
  return at::cat(results, 2).squeeze(0).unflatten(1, {batch, queries}).transpose(0, 1);
}

}  // namespace cinch
