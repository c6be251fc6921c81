// What the reports of all layers say together.
#pragma once

#include <string>
#include <vector>

#include "core/json.h"

namespace cinch {

struct SuspiciousLayer {
  int64_t layer = 0;
  std::string reason;
};

/// Layers to look at before the result is used: an attention output off by three times the median layer's and at least
/// a tenth, or a W_O refit that made it worse by a tenth (on windows that it has not seen). From the layer reports of
/// docs/interface.md.
std::vector<SuspiciousLayer> suspicious_layers(const std::vector<Json>& reports);

/// Predicted errors (root mean square over layers) with one slot list for all layers and with each layer's own; zeros
/// where layers do not share slots.
struct SlotPrice {
  double shared = 0, own = 0;
};
SlotPrice slot_price(const std::vector<Json>& reports);

}  // namespace cinch
