#include "train/launch/launch.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <numeric>
#include <optional>
#include <string_view>
#include <vector>

#include "core/errors.h"
#include "train/launch/node_list.h"

namespace cinch {
namespace {

constexpr const char* kVariables[] = {
    kChildRank, kChildWorld, kChildStore,
    // torchrun
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
    // Open MPI, then MPICH and Intel MPI
    "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
    "PMIX_NAMESPACE", "PMI_RANK", "PMI_SIZE", "PMI_JOBID", "MPI_LOCALRANKID", "MPI_LOCALNRANKS",
    // Slurm
    "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_PROCID",
    "SLURM_RESTART_COUNT", "SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"};

constexpr const char* kUnset = "unset the variables that are left over from elsewhere, then start cinch again";
constexpr const char* kLoopback = "127.0.0.1";

class Variables {
 public:
  explicit Variables(const Environment& environment) : environment_(environment) {}

  std::string text(const std::string& name) const {
    const auto found = environment_.find(name);
    return found == environment_.end() ? std::string() : found->second;
  }
  bool has(const std::string& name) const { return !text(name).empty(); }
  std::optional<int> number(const std::string& name) const {
    const std::string value = text(name);
    if (value.empty()) return std::nullopt;
    int number = 0;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc() || end != value.data() + value.size() || number < 0)
      throw UsageError(fmt::format("{}={}: expected a whole number from 0", name, value), kUnset);
    return number;
  }
  /// Of a variable that belongs to another one.
  int needed(const std::string& name, const std::string& because) const {
    const std::optional<int> value = number(name);
    if (!value) throw UsageError(fmt::format("{} is set, but {} is not", shown({because}), name), kUnset);
    return *value;
  }
  /// "RANK=0 WORLD_SIZE=2", without those that are absent.
  std::string shown(const std::vector<std::string>& names) const {
    std::string shown;
    for (const std::string& name : names) {
      if (has(name)) shown += fmt::format("{}{}={}", shown.empty() ? "" : " ", name, text(name));
    }
    return shown;
  }

 private:
  const Environment& environment_;
};

/// What one launcher says.
struct Claim {
  Launch launch;
  std::string evidence;       // its variables
  bool knows_local = false;   // local_rank, local_world and nodes are stated
  bool one_per_node = false;  // as a launcher starts another one's agents
};

const char* name_of(Launcher launcher) {
  switch (launcher) {
    case Launcher::single:
      return "nobody";
    case Launcher::torchrun:
      return "torchrun";
    case Launcher::variables:
      return "RANK and WORLD_SIZE";
    case Launcher::slurm:
      return "Slurm";
    case Launcher::mpi:
      return "MPI";
    case Launcher::children:
      return "--nproc";
  }
  return "";
}

/// With `rank` and `world` of the variables so named.
Claim basic_claim(const Variables& variables, Launcher launcher, const std::string& rank, const std::string& world) {
  Claim claim;
  claim.launch.launcher = launcher;
  claim.launch.rank = variables.needed(rank, world);
  claim.launch.world = variables.needed(world, rank);
  claim.evidence = variables.shown({rank, world});
  if (claim.launch.rank >= claim.launch.world) {
    throw UsageError(fmt::format("{}: a rank lies from 0 to the number of processes less one", claim.evidence), kUnset);
  }
  return claim;
}

void set_local(Claim& claim, int rank, int world, int nodes, const std::string& evidence) {
  if (rank >= world || world > claim.launch.world || nodes < 1 || nodes > claim.launch.world) {
    throw UsageError(fmt::format("{} {}: a local rank lies below the number of processes of the node, which is at most "
                                 "that of all processes, and no node is empty",
                                 claim.evidence, evidence),
                     kUnset);
  }
  claim.launch.local_rank = rank;
  claim.launch.local_world = world;
  claim.launch.nodes = nodes;
  claim.knows_local = true;
  claim.one_per_node = world == 1;
}

bool is_loopback(const std::string& host) { return host == "localhost" || host == "::1" || host.rfind("127.", 0) == 0; }

int nodes_for(int world, int local_world) { return (world + local_world - 1) / std::max(local_world, 1); }

std::optional<Claim> children_claim(const Variables& variables) {
  if (!variables.has(kChildRank) && !variables.has(kChildWorld)) return std::nullopt;
  Claim claim = basic_claim(variables, Launcher::children, kChildRank, kChildWorld);
  claim.launch.store_file = variables.text(kChildStore);
  if (claim.launch.store_file.empty())
    throw UsageError(fmt::format("{} is set, but {} is not", claim.evidence, kChildStore), kUnset);
  set_local(claim, claim.launch.rank, claim.launch.world, 1, "");
  return claim;
}

std::optional<Claim> torchrun_claim(const Variables& variables) {
  if (!variables.has("RANK")) return std::nullopt;
  const bool elastic = variables.has("TORCHELASTIC_RUN_ID");
  Claim claim = basic_claim(variables, elastic ? Launcher::torchrun : Launcher::variables, "RANK", "WORLD_SIZE");
  Launch& launch = claim.launch;
  const auto local_world = variables.number("LOCAL_WORLD_SIZE"), groups = variables.number("GROUP_WORLD_SIZE");
  if (local_world) {
    set_local(claim, variables.number("LOCAL_RANK").value_or(0), *local_world,
              groups.value_or(nodes_for(launch.world, *local_world)),
              variables.shown({"LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"}));
  } else if (is_loopback(variables.text("MASTER_ADDR"))) {
    set_local(claim, variables.number("LOCAL_RANK").value_or(launch.rank), launch.world, 1,
              variables.shown({"LOCAL_RANK", "MASTER_ADDR"}));
  }
  const std::string agent = variables.text("TORCHELASTIC_USE_AGENT_STORE");
  if (!agent.empty() && agent != "True" && agent != "False")
    throw UsageError(fmt::format("TORCHELASTIC_USE_AGENT_STORE={}: expected True or False", agent), kUnset);
  launch.agent_store = elastic && agent == "True";
  launch.run_id = variables.text("TORCHELASTIC_RUN_ID");
  launch.restart = elastic ? variables.number("TORCHELASTIC_RESTART_COUNT").value_or(0) : 0;
  return claim;
}

std::optional<Claim> mpi_claim(const Variables& variables) {
  const bool open_mpi = variables.has("OMPI_COMM_WORLD_RANK") || variables.has("OMPI_COMM_WORLD_SIZE");
  if (!open_mpi && !variables.has("PMI_RANK") && !variables.has("PMI_SIZE")) return std::nullopt;
  const char* rank = open_mpi ? "OMPI_COMM_WORLD_RANK" : "PMI_RANK";
  const char* world = open_mpi ? "OMPI_COMM_WORLD_SIZE" : "PMI_SIZE";
  const char* local_rank = open_mpi ? "OMPI_COMM_WORLD_LOCAL_RANK" : "MPI_LOCALRANKID";
  const char* local_world = open_mpi ? "OMPI_COMM_WORLD_LOCAL_SIZE" : "MPI_LOCALNRANKS";
  Claim claim = basic_claim(variables, Launcher::mpi, rank, world);
  if (variables.has(local_rank) || variables.has(local_world)) {
    const int here = variables.needed(local_world, local_rank);
    // MPI does not say how many nodes there are: as many as are needed when each holds what this one does.
    set_local(claim, variables.needed(local_rank, local_world), here, nodes_for(claim.launch.world, here),
              variables.shown({local_rank, local_world}));
  }
  for (const char* name : {"PMIX_NAMESPACE", "PMI_JOBID", "SLURM_JOB_ID"}) {
    if (claim.launch.run_id.empty()) claim.launch.run_id = variables.text(name);
  }
  return claim;
}

/// The script of sbatch and the shell of salloc have no step, or one of the reserved numbers at the end of 32 bits.
bool in_slurm_step(const Variables& variables) {
  const std::string step = variables.text("SLURM_STEP_ID");
  return variables.has("SLURM_PROCID") && !step.empty() && step.size() < 10 &&
         step.find_first_not_of("0123456789") == std::string::npos;
}

std::optional<Claim> slurm_claim(const Variables& variables) {
  if (!in_slurm_step(variables)) return std::nullopt;
  const std::string tasks = "SLURM_STEP_NUM_TASKS", per_node = "SLURM_STEP_TASKS_PER_NODE";
  const std::string list = variables.has("SLURM_STEP_NODELIST") ? "SLURM_STEP_NODELIST" : "SLURM_JOB_NODELIST";
  Claim claim = basic_claim(variables, Launcher::slurm, "SLURM_PROCID", variables.has(tasks) ? tasks : "SLURM_NTASKS");
  Launch& launch = claim.launch;
  const auto node = static_cast<size_t>(variables.needed("SLURM_NODEID", "SLURM_PROCID"));
  const std::vector<int> counts = expand_tasks_per_node(per_node, variables.text(per_node));
  const std::vector<std::string> names = expand_node_list(list, variables.text(list));
  if (counts.size() != names.size() || node >= names.size() ||
      std::accumulate(counts.begin(), counts.end(), int64_t{0}) != launch.world) {
    throw UsageError(fmt::format("{} {}: expected as many tasks and nodes by each of them", claim.evidence,
                                 variables.shown({"SLURM_NODEID", per_node, list})),
                     "start cinch as a step of its own: srun cinch ...");
  }
  set_local(claim, variables.needed("SLURM_LOCALID", "SLURM_PROCID"), counts[node], static_cast<int>(names.size()),
            variables.shown({"SLURM_LOCALID", "SLURM_NODEID", per_node}));
  claim.one_per_node = std::all_of(counts.begin(), counts.end(), [](int count) { return count == 1; });
  launch.master_address = names.front();
  launch.run_id = fmt::format("{}.{}", variables.text("SLURM_JOB_ID"), variables.text("SLURM_STEP_ID"));
  launch.restart = variables.number("SLURM_RESTART_COUNT").value_or(0);
  return claim;
}

/// The launcher of `outer` has started agents of the other one: these own all its tasks, or what is left of one on each
/// node when nodes were lost.
bool started_agents(const Claim& outer, const Claim& inner) {
  const int agents = inner.launch.nodes;
  return outer.launch.world <= agents || (outer.one_per_node && agents > 1);
}

/// They speak of the same processes: variables set by hand from another launcher's, or a launcher that serves MPI too.
/// torchrun and --nproc start processes of their own.
bool agree(const Claim& inner, const Claim& outer) {
  const Launch &a = inner.launch, &b = outer.launch;
  if (a.launcher != Launcher::variables && a.launcher != Launcher::mpi) return false;
  const bool local = a.local_rank == b.local_rank && a.local_world == b.local_world;
  return a.rank == b.rank && a.world == b.world && (local || !inner.knows_local || !outer.knows_local);
}

std::string says(const Claim& claim) {
  return fmt::format("{} rank {} of {} ({})", name_of(claim.launch.launcher), claim.launch.rank, claim.launch.world,
                     claim.evidence);
}

[[noreturn]] void refuse(const Claim& inner, const Claim& outer) {
  std::string help = kUnset;
  if (inner.launch.launcher == Launcher::children) {
    help = fmt::format("leave out --nproc: {} has started the processes", name_of(outer.launch.launcher));
  } else if (inner.launch.launcher == Launcher::torchrun && outer.launch.launcher == Launcher::slurm) {
    help =
        "start one torchrun on each node (srun --ntasks-per-node=1 torchrun --nnodes=$SLURM_NNODES ...), or cinch "
        "without torchrun (srun cinch ...)";
  }
  throw UsageError(fmt::format("two launchers disagree: {}; {}", says(inner), says(outer)), help);
}

/// `outer` has started the processes; `inner` may state less.
void complete(Claim& inner, const Claim& outer) {
  Launch& launch = inner.launch;
  if (!inner.knows_local) {
    launch.local_rank = outer.launch.local_rank;
    launch.local_world = outer.launch.local_world;
    launch.nodes = outer.launch.nodes;
    inner.knows_local = outer.knows_local;
  }
  launch.launcher = outer.launch.launcher;
  launch.master_address = outer.launch.master_address;
  launch.run_id = outer.launch.run_id;
  launch.restart = outer.launch.restart;
}

/// The same in all processes of a run, different for runs that share a node: below the ports that Linux gives out
/// itself.
int port_of(const std::string& run_id) {
  if (run_id.empty()) return 29500;       // torch's own default
  uint64_t hash = 14695981039346656037U;  // FNV-1a
  for (const char c : run_id) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211U;
  return 10000 + static_cast<int>(hash % 20000);
}

void set_master(const Variables& variables, Launch& launch) {
  if (launch.launcher == Launcher::torchrun || launch.launcher == Launcher::variables) {
    for (const char* name : {"MASTER_ADDR", "MASTER_PORT"}) {
      if (!variables.has(name))
        throw UsageError(
            fmt::format("{}: several processes, but {} is not set", variables.shown({"RANK", "WORLD_SIZE"}), name),
            "set MASTER_ADDR and MASTER_PORT to the host of rank 0 and a free port there; or unset RANK and "
            "WORLD_SIZE and start cinch with torchrun, srun or --nproc");
    }
  }
  if (variables.has("MASTER_ADDR")) {
    launch.master_address = variables.text("MASTER_ADDR");
    if (is_loopback(launch.master_address) && launch.nodes > 1 && launch.launcher != Launcher::torchrun) {
      throw UsageError(
          fmt::format("MASTER_ADDR={}: each of the {} nodes would ask itself", launch.master_address, launch.nodes),
          "set MASTER_ADDR to the name of rank 0's host as the others know it");
    }
  } else if (launch.nodes == 1) {
    launch.master_address = kLoopback;
  } else if (launch.master_address.empty()) {
    throw UsageError(
        fmt::format("{} processes on {} nodes, but MASTER_ADDR is not set", launch.world, launch.nodes),
        "set MASTER_ADDR to the host of rank 0 (mpirun -x MASTER_ADDR=..., mpiexec -genv MASTER_ADDR ...)");
  }
  launch.master_port = variables.number("MASTER_PORT").value_or(port_of(launch.run_id));
  if (launch.master_port < 1 || launch.master_port > 65535)
    throw UsageError(fmt::format("MASTER_PORT={}: expected a port from 1 to 65535", launch.master_port), kUnset);
}

void check_no_launcher(const Variables& variables) {
  const std::string evidence = variables.shown({"SLURM_JOB_ID", "SLURM_NTASKS"});
  if (variables.has("SLURM_JOB_ID") && variables.number("SLURM_NTASKS").value_or(1) > 1) {
    throw UsageError(fmt::format("{}: a Slurm job of several tasks, but this process is none of them", evidence),
                     "start cinch with srun; or with --nproc N, which starts N processes on this node alone");
  }
}

}  // namespace

Environment current_environment() {
  Environment environment;
  for (const char* name : kVariables) {
    if (const char* value = std::getenv(name)) environment[name] = value;
  }
  return environment;
}

Launch resolve_launch(const Environment& environment) {
  const Variables variables(environment);
  std::vector<Claim> claims;  // of launchers that can have started each other: the inner one first
  for (const auto& claim_of : {children_claim, torchrun_claim, mpi_claim, slurm_claim}) {
    if (std::optional<Claim> claim = claim_of(variables)) claims.push_back(std::move(*claim));
  }
  if (claims.empty()) check_no_launcher(variables);
  Claim claim = claims.empty() ? Claim() : claims.front();
  for (size_t i = 1; i < claims.size(); ++i) {
    if (agree(claim, claims[i])) {
      complete(claim, claims[i]);
    } else if (!started_agents(claims[i], claim)) {
      refuse(claim, claims[i]);
    }
  }
  Launch& launch = claim.launch;
  const std::optional<int> world = variables.number("WORLD_SIZE");
  if (!variables.has("RANK") && world && *world != launch.world) {
    throw UsageError(
        fmt::format("WORLD_SIZE={}: RANK is not set, and this is one of {} processes", *world, launch.world),
        "start cinch with torchrun, srun, mpirun or --nproc, or unset WORLD_SIZE");
  }
  if (!claim.knows_local) launch.nodes = launch.world;
  if (launch.world > 1 && launch.store_file.empty()) set_master(variables, launch);
  return launch;
}

std::string store_prefix(const Launch& launch) {
  return fmt::format("cinch/{}/{}", launch.run_id.empty() ? "run" : launch.run_id, launch.restart);
}

std::string describe(const Launch& launch) {
  if (launch.world == 1) return "1 process";
  std::string text = fmt::format("{} processes", launch.world);
  if (launch.launcher != Launcher::children)
    text += fmt::format(" on {} node{}", launch.nodes, launch.nodes == 1 ? "" : "s");
  text += fmt::format(", started by {}", name_of(launch.launcher));
  if (!launch.master_address.empty()) text += fmt::format(" ({}:{})", launch.master_address, launch.master_port);
  if (launch.restart > 0) text += fmt::format(", restart {}", launch.restart);
  return text;
}

}  // namespace cinch
