#include "eval/bench/contenders.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "core/errors.h"

namespace cinch {
namespace {

/// Kernels that the first of the list would take anyway.
bool only_by_name(const std::string& name) { return name == "mma" || name == "sm90"; }

}  // namespace

std::vector<std::unique_ptr<Contender>> contenders(const DecodeFunctions* functions) {
  std::vector<std::unique_ptr<Contender>> list;
  add_kernel_contenders(functions, list);
  add_torch_contenders(list);
  return list;
}

std::vector<std::unique_ptr<Contender>> contenders(const DecodeFunctions* functions,
                                                   const std::vector<std::string>& names) {
  std::vector<std::string> known;
  std::vector<std::unique_ptr<Contender>> chosen;
  for (auto& contender : contenders(functions)) {
    const std::string name = contender->name();
    known.push_back(name);
    const bool wanted = std::find(names.begin(), names.end(), name) != names.end();
    if (names.empty() ? !only_by_name(name) : wanted) chosen.push_back(std::move(contender));
  }
  for (const std::string& name : names) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    throw UsageError(fmt::format("--kernel: unknown kernel \"{}\"; known: {}", name, fmt::join(known, ", ")));
  }
  return chosen;
}

std::vector<DecodeWork> with_value_map(const std::vector<DecodeInputs>& inputs, std::vector<DecodeWork> works) {
  for (size_t i = 0; i < works.size(); ++i) {
    if (!inputs[i].value_map.defined()) continue;
    works[i] = [work = std::move(works[i]), map = inputs[i].value_map.transpose(1, 2)] {
      return at::bmm(work().transpose(0, 1), map).transpose(0, 1);
    };
  }
  return works;
}

}  // namespace cinch
