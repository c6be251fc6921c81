// A kernel proves itself before it is used: on hardware, drivers and libraries that nobody has tried, a wrong result
// must not be what tells.
#pragma once

#include <string>

#include "attention/attention_kernel.h"

namespace cinch {

/// Empty where the kernel equals the reference (fp64, relative error below 2 %) on a small request of the same kind:
/// device, type, widths, heads per key head, window, soft cap, documents, going on from a cache, and with gradients
/// where this request records them; else what went wrong. Runs once per kind and process, and warns then.
std::string failed_check(const AttentionKernel& kernel, const AttentionRequest& request);

}  // namespace cinch
