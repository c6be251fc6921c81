// How the processes of a distributed uptraining find each other: what torchrun, Slurm, MPI or `--nproc` have put into
// the environment, and a refusal where it contradicts itself. No torch.
#pragma once

#include <map>
#include <string>

namespace cinch {

/// Environment variables by name. An empty value counts as absent.
using Environment = std::map<std::string, std::string>;

/// The variables that `resolve_launch` looks at, as this process sees them.
Environment current_environment();

enum class Launcher {
  single,     // nobody: one process
  torchrun,   // RANK ... and TORCHELASTIC_RUN_ID
  variables,  // RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, set by hand or by an operator of Kubernetes
  slurm,      // a step of a job: srun
  mpi,        // mpirun or mpiexec of Open MPI, MPICH or Intel MPI
  children    // cinch uptrain --nproc (train/launch/launch_children.h)
};

/// This process among those that train together.
struct Launch {
  Launcher launcher = Launcher::single;
  int rank = 0, world = 1;              // of all processes
  int local_rank = 0, local_world = 1;  // of those on this node: which GPU, how many share the cores
  int nodes = 1;                        // torchrun: agents; MPI: as if all held as many as this one

  // Where the c10d store is. Nothing is set for a single process.
  std::string store_file;      // a FileStore for all (children), else empty and a TCPStore:
  std::string master_address;  // host
  int master_port = 0;
  bool agent_store = false;  // torchrun's agent serves it and every process is a client; else rank 0 serves

  std::string run_id;  // of the run or job, the same in all processes; may be empty
  int restart = 0;     // times that the launcher has started all processes again
};

/// Reads and checks the variables. torchrun's and MPI's count more than those of the Slurm step that started their
/// agents, one on each node. Throws UsageError that names the variables and a way out: not a number, a rank out of
/// range, parts missing, two launchers that disagree, a Slurm job of several tasks entered without srun. Sources:
/// torch 2.11 torch/distributed/elastic/agent/server/local_elastic_agent.py and rendezvous.py; srun(1), OUTPUT
/// ENVIRONMENT VARIABLES; mpirun(1) of Open MPI 4; hydra of MPICH 4.
Launch resolve_launch(const Environment& environment);

/// What the keys in the store begin with: an agent's store outlives a restart of its workers, whose keys would else
/// meet those of the attempt before.
std::string store_prefix(const Launch& launch);

/// "4 processes on 2 nodes, started by torchrun (gpu-01:29500)"
std::string describe(const Launch& launch);

/// What `--nproc` tells each of its children: rank, number of processes, path of the store.
constexpr const char* kChildRank = "CINCH_NPROC_RANK";
constexpr const char* kChildWorld = "CINCH_NPROC_SIZE";
constexpr const char* kChildStore = "CINCH_NPROC_STORE";

}  // namespace cinch
