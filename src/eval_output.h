// An evaluation as text.
#pragma once

#include <string>

#include "eval/eval_report.h"

namespace cinch {

/// Of one model at 16 bits.
std::string eval_text(const EvalReport& report);
/// Of several models or precisions: one line per row, by bytes.
std::string eval_table_text(const EvalReport& report);

}  // namespace cinch
