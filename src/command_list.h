// Every command's constructor, declared once. To add a command: write src/<name>_command.cpp, declare it here, list it
// in command_list.cpp.
#pragma once

#include "src/command.h"

namespace cinch {

Command inspect_command();
Command plan_command();
Command convert_command();
Command eval_command();
Command generate_command();
Command bench_command();
Command uptrain_command();
Command export_command();
Command tokenize_command();
Command verify_command();
Command doctor_command();
Command completion_command();

}  // namespace cinch
