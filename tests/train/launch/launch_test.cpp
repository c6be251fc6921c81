#include "train/launch/launch.h"

#include <gmock/gmock.h>

#include <cstdlib>

#include "core/errors.h"
#include "train/launch/node_list.h"

namespace cinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Environment operator+(Environment a, const Environment& b) {
  for (const auto& [name, value] : b) a[name] = value;
  return a;
}

/// As torch 2.11's agent sets them for `torchrun --nnodes 2 --nproc-per-node 2`.
const Environment kTorchrun = {{"RANK", "3"},
                               {"WORLD_SIZE", "4"},
                               {"LOCAL_RANK", "1"},
                               {"LOCAL_WORLD_SIZE", "2"},
                               {"GROUP_RANK", "1"},
                               {"GROUP_WORLD_SIZE", "2"},
                               {"MASTER_ADDR", "gpu-01"},
                               {"MASTER_PORT", "29500"},
                               {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                               {"TORCHELASTIC_RUN_ID", "heal"},
                               {"TORCHELASTIC_RESTART_COUNT", "2"}};
/// As Slurm 22.05 sets them for `srun`.
const Environment kSlurm = {{"SLURM_JOB_ID", "117"},
                            {"SLURM_STEP_ID", "0"},
                            {"SLURM_PROCID", "2"},
                            {"SLURM_NTASKS", "3"},
                            {"SLURM_STEP_NUM_TASKS", "3"},
                            {"SLURM_LOCALID", "0"},
                            {"SLURM_NODEID", "1"},
                            {"SLURM_JOB_NODELIST", "gpu[01-04]"},
                            {"SLURM_STEP_NODELIST", "gpu[03-04]"},
                            {"SLURM_STEP_TASKS_PER_NODE", "2,1"}};
/// Two agents, one on each node, which started kTorchrun's or kOpenMpi's processes.
const Environment kSlurmAgents = kSlurm + Environment{{"SLURM_PROCID", "1"},
                                                      {"SLURM_NTASKS", "2"},
                                                      {"SLURM_STEP_NUM_TASKS", "2"},
                                                      {"SLURM_STEP_TASKS_PER_NODE", "1(x2)"}};
const Environment kBatchScript = {{"SLURM_JOB_ID", "117"},
                                  {"SLURM_PROCID", "0"},
                                  {"SLURM_NTASKS", "3"},
                                  {"SLURM_LOCALID", "0"},
                                  {"SLURM_NODEID", "0"},
                                  {"SLURM_NPROCS", "3"},
                                  {"SLURM_JOB_NODELIST", "gpu[01-04]"}};
const Environment kOpenMpi = {{"OMPI_COMM_WORLD_RANK", "1"},
                              {"OMPI_COMM_WORLD_SIZE", "2"},
                              {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                              {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                              {"PMIX_NAMESPACE", "982646785"}};
const Environment kHydra = {{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}};
const Environment kChild = {{kChildRank, "1"}, {kChildWorld, "2"}, {kChildStore, "/proc/self/fd/9"}};

TEST(Launch, NobodyStartsOneProcess) {
  for (const Environment& environment :
       {Environment{}, Environment{{"WORLD_SIZE", "1"}}, Environment{{"RANK", ""}, {"WORLD_SIZE", ""}},
        Environment{{"MASTER_ADDR", "gpu-01"}, {"MASTER_PORT", "none"}},
        kBatchScript + Environment{{"SLURM_NTASKS", "1"}}}) {
    const Launch launch = resolve_launch(environment);
    EXPECT_EQ(launch.launcher, Launcher::single);
    EXPECT_EQ(launch.rank, 0);
    EXPECT_EQ(launch.world, 1);
    EXPECT_EQ(launch.nodes, 1);
    EXPECT_EQ(launch.master_address, "");
    EXPECT_EQ(describe(launch), "1 process");
  }
}

TEST(Launch, TorchrunSaysItAll) {
  const Launch launch = resolve_launch(kTorchrun);
  EXPECT_EQ(launch.launcher, Launcher::torchrun);
  EXPECT_EQ(launch.rank, 3);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_world, 2);
  EXPECT_TRUE(launch.agent_store);
  EXPECT_EQ(store_prefix(launch), "cinch/heal/2");
  EXPECT_EQ(describe(launch), "4 processes on 2 nodes, started by torchrun (gpu-01:29500), restart 2");
  EXPECT_FALSE(resolve_launch(kTorchrun + Environment{{"TORCHELASTIC_USE_AGENT_STORE", "False"}}).agent_store);
  EXPECT_EQ(resolve_launch(kTorchrun + Environment{{"LOCAL_RANK", "0"}}).local_rank, 0) << "--virtual-local-rank";
}

TEST(Launch, TheVariablesOfTorchrunMayBeSetByHand) {
  const Environment bare = {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "worker-0"}, {"MASTER_PORT", "23456"}};
  const Launch pods = resolve_launch(bare);
  EXPECT_FALSE(pods.agent_store);
  EXPECT_EQ(pods.local_rank, 0);
  EXPECT_EQ(describe(pods), "2 processes on 2 nodes, started by RANK and WORLD_SIZE (worker-0:23456)");
  const Launch here = resolve_launch(bare + Environment{{"MASTER_ADDR", "127.0.0.1"}});
  EXPECT_EQ(here.local_rank, 1);
  EXPECT_EQ(here.local_world, 2);
  EXPECT_EQ(here.nodes, 1);
}

TEST(Launch, SlurmStepsMeetOnTheirFirstNode) {
  const Launch launch = resolve_launch(kSlurm);
  EXPECT_EQ(launch.launcher, Launcher::slurm);
  EXPECT_EQ(launch.rank, 2);
  EXPECT_EQ(launch.world, 3);
  EXPECT_EQ(launch.local_rank, 0);
  EXPECT_EQ(launch.local_world, 1);
  EXPECT_EQ(launch.nodes, 2);
  EXPECT_EQ(launch.master_address, "gpu03");
  EXPECT_EQ(store_prefix(launch), "cinch/117.0/0");
  EXPECT_FALSE(launch.agent_store);

  const Environment rank_0 = {{"SLURM_PROCID", "0"}, {"SLURM_NODEID", "0"}};
  EXPECT_EQ(resolve_launch(kSlurm + rank_0).master_port, launch.master_port);
  EXPECT_EQ(resolve_launch(kSlurm + rank_0).local_world, 2);
  EXPECT_NE(resolve_launch(kSlurm + Environment{{"SLURM_STEP_ID", "1"}}).master_port, launch.master_port);
  EXPECT_NE(resolve_launch(kSlurm + Environment{{"SLURM_JOB_ID", "118"}}).master_port, launch.master_port);
  for (int job = 1; job < 2000; ++job) {
    const int port = resolve_launch(kSlurm + Environment{{"SLURM_JOB_ID", std::to_string(job)}}).master_port;
    ASSERT_GE(port, 10000);
    ASSERT_LT(port, 30000);
  }

  const Launch told = resolve_launch(
      kSlurm + Environment{{"MASTER_ADDR", "ib-3"}, {"MASTER_PORT", "4000"}, {"SLURM_RESTART_COUNT", "1"}});
  EXPECT_EQ(describe(told), "3 processes on 2 nodes, started by Slurm (ib-3:4000), restart 1");
  EXPECT_EQ(store_prefix(told), "cinch/117.0/1");

  const Launch one_node = resolve_launch(
      kSlurm + rank_0 + Environment{{"SLURM_STEP_NODELIST", "gpu03"}, {"SLURM_STEP_TASKS_PER_NODE", "3"}});
  EXPECT_EQ(one_node.master_address, "127.0.0.1");
}

TEST(Launch, MpiOnOneNodeNeedsNoAddress) {
  for (const Environment& environment : {kOpenMpi, kHydra}) {
    const Launch launch = resolve_launch(environment);
    EXPECT_EQ(launch.launcher, Launcher::mpi);
    EXPECT_EQ(launch.rank, 1);
    EXPECT_EQ(launch.world, 2);
    EXPECT_EQ(launch.local_rank, 1);
    EXPECT_EQ(launch.local_world, 2);
    EXPECT_EQ(launch.nodes, 1);
    EXPECT_EQ(launch.master_address, "127.0.0.1");
    EXPECT_GT(launch.master_port, 0);
    EXPECT_FALSE(launch.agent_store);
  }
  const Environment two_nodes = {{"OMPI_COMM_WORLD_SIZE", "4"}, {"MASTER_ADDR", "gpu-01"}, {"MASTER_PORT", "29501"}};
  EXPECT_EQ(describe(resolve_launch(kOpenMpi + two_nodes)), "4 processes on 2 nodes, started by MPI (gpu-01:29501)");
}

TEST(Launch, ChildrenMeetInAFile) {
  const Launch launch = resolve_launch(kChild);
  EXPECT_EQ(launch.launcher, Launcher::children);
  EXPECT_EQ(launch.rank, 1);
  EXPECT_EQ(launch.local_rank, 1);
  EXPECT_EQ(launch.local_world, 2);
  EXPECT_EQ(launch.store_file, "/proc/self/fd/9");
  EXPECT_EQ(launch.master_address, "");
  EXPECT_EQ(describe(launch), "2 processes, started by --nproc");
}

TEST(Launch, TheInnerOfTwoLaunchersCounts) {
  // One agent of torchrun on each node.
  const Launch torchrun = resolve_launch(kTorchrun + kSlurmAgents);
  EXPECT_EQ(torchrun.launcher, Launcher::torchrun);
  EXPECT_EQ(torchrun.world, 4);
  EXPECT_EQ(torchrun.master_address, "gpu-01");
  // A node was lost: torchrun goes on with those that are left.
  EXPECT_EQ(resolve_launch(kTorchrun + kSlurmAgents +
                           Environment{{"SLURM_STEP_NUM_TASKS", "3"},
                                       {"SLURM_STEP_TASKS_PER_NODE", "1(x3)"},
                                       {"SLURM_STEP_NODELIST", "gpu[01-03]"}})
                .world,
            4);
  // In a batch script without srun, on one node.
  EXPECT_EQ(resolve_launch(kTorchrun + kBatchScript).launcher, Launcher::torchrun);
  // mpirun starts its agents by srun.
  EXPECT_EQ(resolve_launch(kOpenMpi + kSlurmAgents + Environment{{"OMPI_COMM_WORLD_SIZE", "4"}, {"MASTER_ADDR", "a"}})
                .launcher,
            Launcher::mpi);
  // An outer launcher of one process.
  const Environment one_task = {{"SLURM_PROCID", "0"},
                                {"SLURM_STEP_NUM_TASKS", "1"},
                                {"SLURM_NODEID", "0"},
                                {"SLURM_STEP_NODELIST", "a"},
                                {"SLURM_STEP_TASKS_PER_NODE", "1"}};
  EXPECT_EQ(resolve_launch(kChild + kSlurm + one_task).launcher, Launcher::children);
  EXPECT_EQ(resolve_launch(kChild + kBatchScript).launcher, Launcher::children);
  EXPECT_EQ(resolve_launch(kChild + Environment{{"RANK", "0"}, {"WORLD_SIZE", "1"}}).launcher, Launcher::children);
}

TEST(Launch, TwoLaunchersMaySpeakOfTheSameProcesses) {
  // srun --mpi=pmi2
  const Environment pmi = {{"PMI_RANK", "2"}, {"PMI_SIZE", "3"}, {"PMI_JOBID", "117.0"}};
  EXPECT_EQ(describe(resolve_launch(kSlurm + pmi)), describe(resolve_launch(kSlurm)));
  // Scripts that set torch's variables from Slurm's.
  const Launch copied = resolve_launch(
      kSlurm + Environment{{"RANK", "2"}, {"WORLD_SIZE", "3"}, {"MASTER_ADDR", "gpu03"}, {"MASTER_PORT", "12345"}});
  EXPECT_EQ(describe(copied), "3 processes on 2 nodes, started by Slurm (gpu03:12345)");
  EXPECT_EQ(copied.local_rank, 0);
  EXPECT_EQ(copied.local_world, 1);
  EXPECT_EQ(resolve_launch(kSlurm + Environment{{"WORLD_SIZE", "3"}}).world, 3);
  // One process for each agent of torchrun.
  const Launch agents =
      resolve_launch(kTorchrun + kSlurmAgents +
                     Environment{{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "1"}});
  EXPECT_EQ(agents.launcher, Launcher::torchrun);
  EXPECT_TRUE(agents.agent_store);
}

struct Refused {
  const char* name;
  Environment environment;
  std::vector<std::string> message, help;
};

TEST(Launch, ContradictionsAreRefused) {
  const Environment two = {{"RANK", "0"}, {"WORLD_SIZE", "2"}};
  const std::vector<Refused> cases = {
      {"rank alone", {{"RANK", "0"}}, {"RANK=0 is set, but WORLD_SIZE is not"}, {"unset"}},
      {"size alone", {{"WORLD_SIZE", "2"}}, {"WORLD_SIZE=2: RANK is not set"}, {"torchrun", "unset WORLD_SIZE"}},
      {"size of another", kSlurm + Environment{{"WORLD_SIZE", "4"}}, {"WORLD_SIZE=4", "one of 3"}, {}},
      {"rank too high", {{"RANK", "2"}, {"WORLD_SIZE", "2"}}, {"RANK=2 WORLD_SIZE=2", "rank"}, {"unset"}},
      {"no process", {{"RANK", "0"}, {"WORLD_SIZE", "0"}}, {"WORLD_SIZE=0"}, {}},
      {"a word", {{"RANK", "first"}, {"WORLD_SIZE", "2"}}, {"RANK=first: expected a whole number"}, {}},
      {"negative", {{"RANK", "-1"}, {"WORLD_SIZE", "2"}}, {"RANK=-1: expected a whole number"}, {}},
      {"a tail", {{"RANK", "0"}, {"WORLD_SIZE", "2x"}}, {"WORLD_SIZE=2x"}, {}},
      {"too large", {{"RANK", "0"}, {"WORLD_SIZE", "99999999999"}}, {"WORLD_SIZE=99999999999"}, {}},
      {"no address", two, {"RANK=0 WORLD_SIZE=2", "MASTER_ADDR is not set"}, {"torchrun, srun or --nproc"}},
      {"no port", two + Environment{{"MASTER_ADDR", "a"}}, {"MASTER_PORT is not set"}, {}},
      {"port 0", kTorchrun + Environment{{"MASTER_PORT", "0"}}, {"MASTER_PORT=0"}, {}},
      {"port too high", kTorchrun + Environment{{"MASTER_PORT", "65536"}}, {"MASTER_PORT=65536"}, {}},
      {"local rank too high", kTorchrun + Environment{{"LOCAL_RANK", "2"}}, {"LOCAL_RANK=2 LOCAL_WORLD_SIZE=2"}, {}},
      {"node larger than all", kTorchrun + Environment{{"LOCAL_WORLD_SIZE", "8"}}, {"LOCAL_WORLD_SIZE=8"}, {}},
      {"no nodes", kTorchrun + Environment{{"GROUP_WORLD_SIZE", "0"}}, {"GROUP_WORLD_SIZE=0"}, {}},
      {"agent store", kTorchrun + Environment{{"TORCHELASTIC_USE_AGENT_STORE", "1"}}, {"USE_AGENT_STORE=1"}, {}},
      {"each task has a torchrun of its own",
       kSlurm + kTorchrun + Environment{{"WORLD_SIZE", "2"}, {"RANK", "1"}, {"GROUP_WORLD_SIZE", "1"}},
       {"two launchers disagree", "torchrun rank 1 of 2 (RANK=1 WORLD_SIZE=2)",
        "Slurm rank 2 of 3 (SLURM_PROCID=2 SLURM_STEP_NUM_TASKS=3)"},
       {"--ntasks-per-node=1", "--nnodes"}},
      {"each node has a torchrun of its own",
       kSlurmAgents + kTorchrun + Environment{{"WORLD_SIZE", "2"}, {"RANK", "1"}, {"GROUP_WORLD_SIZE", "1"}},
       {"two launchers disagree"},
       {"--nnodes"}},
      {"each task has a torchrun of its own, with a rank like the task's",
       kSlurm + kTorchrun +
           Environment{{"WORLD_SIZE", "3"},
                       {"RANK", "2"},
                       {"LOCAL_RANK", "0"},
                       {"LOCAL_WORLD_SIZE", "1"},
                       {"GROUP_WORLD_SIZE", "1"}},
       {"two launchers disagree"},
       {"--nnodes"}},
      {"left over from another run",
       kSlurm + Environment{{"RANK", "0"}, {"WORLD_SIZE", "1"}},
       {"RANK and WORLD_SIZE rank 0 of 1", "Slurm rank 2 of 3"},
       {"unset"}},
      {"--nproc in every task", kChild + kSlurm, {"--nproc rank 1 of 2", "Slurm rank 2 of 3"}, {"leave out --nproc"}},
      {"--nproc in every process of torchrun", kChild + kTorchrun, {"--nproc", "torchrun"}, {"leave out --nproc"}},
      {"mpirun in every task",
       kSlurm + kOpenMpi,
       {"MPI rank 1 of 2 (OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2)", "Slurm"},
       {"unset"}},
      {"mpi without size", {{"OMPI_COMM_WORLD_RANK", "1"}}, {"OMPI_COMM_WORLD_SIZE is not"}, {}},
      {"mpi without local size",
       {{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "0"}},
       {"MPI_LOCALNRANKS is not"},
       {}},
      {"mpi on two nodes",
       kHydra + Environment{{"PMI_SIZE", "4"}},
       {"4 processes on 2 nodes", "MASTER_ADDR"},
       {"-x", "-genv"}},
      {"two nodes ask themselves", kSlurm + Environment{{"MASTER_ADDR", "localhost"}}, {"MASTER_ADDR=localhost"}, {}},
      {"sbatch without srun", kBatchScript, {"SLURM_JOB_ID=117 SLURM_NTASKS=3", "none of them"}, {"srun", "--nproc"}},
      {"salloc's shell in a step of its own",
       kBatchScript + Environment{{"SLURM_STEP_ID", "4294967290"}},
       {"SLURM_NTASKS=3"},
       {"srun"}},
      {"salloc", {{"SLURM_JOB_ID", "3"}, {"SLURM_NTASKS", "2"}}, {"SLURM_JOB_ID=3"}, {"srun"}},
      {"slurm's node list",
       kSlurm + Environment{{"SLURM_STEP_NODELIST", "gpu[03-"}},
       {"SLURM_STEP_NODELIST=gpu[03-"},
       {"srun"}},
      {"slurm's tasks",
       kSlurm + Environment{{"SLURM_STEP_TASKS_PER_NODE", "2,2"}},
       {"SLURM_STEP_TASKS_PER_NODE=2,2"},
       {}},
      {"slurm's nodes", kSlurm + Environment{{"SLURM_STEP_NODELIST", "a"}}, {"SLURM_STEP_NODELIST=a"}, {}},
      {"slurm's node", kSlurm + Environment{{"SLURM_NODEID", "2"}}, {"SLURM_NODEID=2"}, {}},
      {"child without a store", kChild + Environment{{kChildStore, ""}}, {kChildStore}, {}},
  };
  for (const Refused& refused : cases) {
    SCOPED_TRACE(refused.name);
    try {
      ADD_FAILURE() << describe(resolve_launch(refused.environment));
    } catch (const UsageError& error) {
      for (const std::string& part : refused.message) EXPECT_THAT(error.what(), HasSubstr(part));
      for (const std::string& part : refused.help) EXPECT_THAT(error.help(), HasSubstr(part));
      EXPECT_NE(error.help(), "") << error.what();
    }
  }
}

TEST(Launch, OnlyWhatMattersIsReadFromTheEnvironment) {
  ::setenv("PMI_JOBID", "7.0", 1);
  const Environment environment = current_environment();
  ::unsetenv("PMI_JOBID");
  EXPECT_EQ(environment.at("PMI_JOBID"), "7.0");
  EXPECT_EQ(environment.count("PATH"), 0U);
}

TEST(NodeList, EveryFormOfSlurms) {
  const auto nodes = [](const std::string& text) { return expand_node_list("NODES", text); };
  EXPECT_THAT(nodes("localhost"), ElementsAre("localhost"));
  EXPECT_THAT(nodes("a,b-2,c3.cluster"), ElementsAre("a", "b-2", "c3.cluster"));
  EXPECT_THAT(nodes("gpu[01-03,07],x5"), ElementsAre("gpu01", "gpu02", "gpu03", "gpu07", "x5"));
  EXPECT_THAT(nodes("n[9-11]"), ElementsAre("n9", "n10", "n11"));
  EXPECT_THAT(nodes("n[098-101]-ib"), ElementsAre("n098-ib", "n099-ib", "n100-ib", "n101-ib"));
  EXPECT_THAT(nodes("rack[1-2]n[3,5]"), ElementsAre("rack1n3", "rack1n5", "rack2n3", "rack2n5"));
  EXPECT_THAT(nodes("a[1],b[2-2]c"), ElementsAre("a1", "b2c"));
  EXPECT_EQ(nodes("n[1-65536]").size(), 65536U);
  for (const char* bad : {"", ",", "a,", "a[", "a[1", "a[]", "a[1-]", "a[2-1]", "a[1-2", "a]", "a[x]", "a[1,]",
                          "a[1-65537]", "a[0-999999]b[0-999999]", "a[1-99999999999]", "a[1-300]b[1-300]"}) {
    EXPECT_THROW(nodes(bad), UsageError) << bad;
  }
}

TEST(NodeList, TasksPerNode) {
  const auto tasks = [](const std::string& text) { return expand_tasks_per_node("TASKS", text); };
  EXPECT_THAT(tasks("4"), ElementsAre(4));
  EXPECT_THAT(tasks("2(x3),1"), ElementsAre(2, 2, 2, 1));
  EXPECT_THAT(tasks("1,2(x1)"), ElementsAre(1, 2));
  for (const char* bad : {"", "x", "2(", "2(x", "2(x)", "2(x3", "2,", "2(x99999999)", "2(3)", "-1"}) {
    EXPECT_THROW(tasks(bad), UsageError) << bad;
  }
}

}  // namespace
}  // namespace cinch
