// What computes a decode case in a benchmark: cinch's kernels, and what LibTorch offers for the same.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "attention/kernels/decode/decode_functions.h"
#include "eval/bench/decode_inputs.h"

namespace cinch {

/// One decode of one set of inputs: out (B, H, width). Enqueues on the current stream.
using DecodeWork = std::function<at::Tensor()>;

struct PreparedDecode {
  std::vector<DecodeWork> works;  // one for each of the inputs
  std::string kernel;             // that runs
  /// What a step does once for all layers, and is not in `works`; may be empty.
  std::function<void()> once_per_step;
};

class Contender {
 public:
  virtual ~Contender() = default;
  virtual std::string name() const = 0;
  virtual bool ours() const { return false; }  // a kernel of cinch's own
  virtual bool paged() const { return false; }
  /// Empty, or why it is not for such cases in words ("16-bit caches only").
  virtual std::string missing(const DecodeCase& decode, at::Device device) const = 0;
  /// Throws what the kernel or LibTorch says where it does not cover the case.
  virtual PreparedDecode prepare(const DecodeCase& decode, const std::vector<DecodeInputs>& inputs) const = 0;
};

/// In the order of reports: ours (with `functions`; whichever kernel covers the case first, and each by its name), the
/// module's own path through attend(), scaled_dot_product_attention with one backend each, two batched products.
std::vector<std::unique_ptr<Contender>> contenders(const DecodeFunctions* functions);

/// Those called `names`; without names all but the ones that only a name asks for. Throws UsageError naming them.
std::vector<std::unique_ptr<Contender>> contenders(const DecodeFunctions* functions,
                                                   const std::vector<std::string>& names);

// The lists' parts, each in its own file.
void add_kernel_contenders(const DecodeFunctions* functions, std::vector<std::unique_ptr<Contender>>& list);
void add_torch_contenders(std::vector<std::unique_ptr<Contender>>& list);

/// The works followed by the value map, one batched product, where the inputs have one.
std::vector<DecodeWork> with_value_map(const std::vector<DecodeInputs>& inputs, std::vector<DecodeWork> works);

}  // namespace cinch
