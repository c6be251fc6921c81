// Predicted errors of many cache budgets from one file of moments: nothing is converted.
#pragma once

#include <string>
#include <vector>

#include "convert/conversion_plan.h"
#include "convert/moment_file.h"
#include "model/model_source.h"

namespace cinch {

struct SweepRow {
  double budget = 0;  // asked for; 0: the source's own attention with a quantised cache
  int bits = 16;      // of a cached number
  int64_t rank = 0, rope_dim = 0;
  double kv_ratio = 0;  // bytes of the source's 16-bit cache
  double error = 0;     // predicted relative error of the attention output, root mean square over layers
  double worst_error = 0;
  int64_t worst_layer = 0;

  Json to_json() const;
};

/// Of `--to mla --method weighted`: each budget at the recipe's precision, or at 16, 8 and 4 bits and beside the source
/// at 8 and 4 bits when that is left open (kv_bits 0). Sizes that a budget cannot buy are left out. Throws UsageError
/// where no budget is possible, and where the file was measured on another model.
std::vector<SweepRow> sweep_budgets(const ModelSource& source, const ConversionRecipe& recipe,
                                    const std::vector<double>& budgets, const std::filesystem::path& moments);

}  // namespace cinch
