#include "attention/decode/decode_kernel.h"

#include <fmt/format.h>

#include <array>

#include "core/errors.h"

namespace cinch {
namespace {

constexpr std::array kNames = {"auto", "attend", "mma", "sm90"};  // by DecodeKernel

}  // namespace

DecodeKernel parse_decode_kernel(const std::string& text) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (text == kNames[i]) return static_cast<DecodeKernel>(i);
  }
  throw UsageError(fmt::format("unknown decode kernel \"{}\"", text),
                   fmt::format("known: {}", fmt::join(kNames, ", ")));
}

std::string name_of(DecodeKernel kernel) { return kNames.at(static_cast<size_t>(kernel)); }

}  // namespace cinch
