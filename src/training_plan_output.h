// The plan of an uptraining as text.
#pragma once

#include <string>

#include "train/planning/training_plan.h"

namespace cinch {

std::string training_plan_text(const TrainingPlan& plan, const DeviceLimits& device);

}  // namespace cinch
