// `--nproc N`: copies of this program on this machine, one for each rank. No torch.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace cinch {

struct ChildrenOptions {
  std::string program;                     // empty: the running one
  std::chrono::milliseconds grace{10000};  // from the request to end, after another one's fault, to SIGKILL
};

/// Runs `count` copies of the program with `arguments` (without the program's name) and waits for them. Each finds its
/// rank by `resolve_launch`. Returns 0, or the exit code of the first that failed, 128 + signal for one that a signal
/// ended.
///
/// They meet in a file of memory that they inherit: there is no port that another program could take before rank 0
/// does, and nothing to remove however they end. They share the cores (OMP_NUM_THREADS unless it is set). A request to
/// stop (core/progress.h) reaches them as SIGUSR1, of which they may also get more from a scheduler; when one fails the
/// others get SIGTERM, after `grace` SIGKILL; when this process dies the kernel ends them.
///
/// Throws UsageError when another launcher has started several processes already, ResourceError when the system refuses
/// one more.
int run_children(int count, const std::vector<std::string>& arguments, const ChildrenOptions& options = {});

}  // namespace cinch
