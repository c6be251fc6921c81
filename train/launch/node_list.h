// Slurm's short forms for nodes and for tasks per node. No torch.
#pragma once

#include <string>
#include <vector>

namespace cinch {

/// "gpu[01-03,07],x5" -> gpu01 gpu02 gpu03 gpu07 x5; several brackets in one name run like the digits of a number, the
/// last fastest. Throws UsageError naming `variable` for text of another form and for more than 65536 nodes.
/// Form: slurm.conf(5), "NodeName".
std::vector<std::string> expand_node_list(const std::string& variable, const std::string& text);

/// "2(x3),1" -> 2 2 2 1. Throws UsageError like the above. Form: sbatch(1), SLURM_TASKS_PER_NODE.
std::vector<int> expand_tasks_per_node(const std::string& variable, const std::string& text);

}  // namespace cinch
