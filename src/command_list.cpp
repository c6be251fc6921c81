#include "src/command_list.h"

namespace cinch {

const std::vector<Command>& commands() {
  static const std::vector<Command> list = {
      inspect_command(),  plan_command(),   convert_command(), eval_command(),
      generate_command(), bench_command(),  uptrain_command(), export_command(),
      tokenize_command(), verify_command(), doctor_command(),  completion_command(),
  };
  return list;
}

}  // namespace cinch
