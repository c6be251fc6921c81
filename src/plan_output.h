// A conversion plan as text.
#pragma once

#include <string>

#include "convert/conversion_plan.h"

namespace cinch {

std::string plan_text(const ConversionPlan& plan);

/// Prints the plan as text or, with --json, as the `plan` object.
void print_plan(const ConversionPlan& plan);

}  // namespace cinch
