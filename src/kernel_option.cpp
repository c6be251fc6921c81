#include "src/kernel_option.h"

#include "attention/attention_kernel.h"

namespace cinch {

void add_kernel_option(CLI::App& command, std::string& kernel, const std::vector<std::string>& more) {
  std::string names;
  for (const std::string& each : more) names += "|" + each;
  for (const AttentionKernel* each : attention_kernels()) names += "|" + each->name();
  command.add_option("--kernel", kernel, "Attention kernel; auto = the first that covers (see doctor --kernels)")
      ->capture_default_str()
      ->type_name("auto" + names);
}

}  // namespace cinch
