// Which kernel computes the attention of a decode step, as users name it, and what became of that for one layer.
#pragma once

#include <string>

namespace cinch {

/// automatic: the first decode kernel that covers a layer, else attend. attend: the kernels of attention_kernel.h over
/// a cache that grows. mma, sm90: that kernel of kernels/decode/decode_abi.h, or an error.
enum class DecodeKernel { automatic, attend, mma, sm90 };

/// "auto", "attend", "mma", "sm90"; throws UsageError naming them.
DecodeKernel parse_decode_kernel(const std::string& text);
std::string name_of(DecodeKernel kernel);

/// What one layer runs.
struct DecodeChoice {
  DecodeKernel kernel = DecodeKernel::attend;  // never automatic
  std::string why;                             // why no other one that would come first; may be empty
};

}  // namespace cinch
