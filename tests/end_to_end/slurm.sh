#!/usr/bin/env bash
# Uptraining by Slurm, in a cluster of two nodes on this machine that lives in a temporary folder: steps of two tasks on one
# node and on two, a batch job (configs/slurm/uptrain.sbatch) that is asked to stop twice, gives way to another job once and goes on
# each time, a step with a killed task. All write the same weights. What Slurm alone does not start as it should is refused.
# Usage: slurm.sh CINCH MODEL TEXT. Needs root and Debian's slurm-wlm; without them exit 77: skipped. Exit 0: all held.
# KEEP=1 keeps the folder, ZERO=LEVEL adds --zero, TOKENS is how much is trained.
set -u
cinch=$1 model=$2 text=$3
batch=$(cd "$(dirname "$0")/../../configs/slurm" && pwd)/uptrain.sbatch
skip() { echo "skipped: $*"; exit 77; }
[ "$(id -u)" = 0 ] || skip "a cluster of one's own needs root"
PATH=$PATH:/usr/sbin:/sbin
for program in munged slurmctld slurmd srun sbatch scontrol; do
  command -v $program >/dev/null || skip "there is no $program; apt-get install slurm-wlm munge"
done
getent ahosts "$(hostname)" >/dev/null || skip "the name of this machine, $(hostname), has no address"
unset "${!SLURM_@}"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

work=$(mktemp -d)
chmod 755 "$work"
failures=0 checks=0
fail() { echo "FAILED: $*"; failures=$((failures + 1)); }
end_process() { # PID_FILE
  local pid i
  pid=$(cat "$1" 2>/dev/null) || return
  kill "$pid" 2>/dev/null
  for i in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || return
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null
}
tear_down() {
  if [ -e "$work/slurmctld.pid" ]; then
    local i
    timeout 10 scancel --user=root 2>/dev/null
    for i in $(seq 150); do
      [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break
      sleep 0.1
    done
  fi
  for daemon in slurmd-node1 slurmd-node2 slurmctld munged; do end_process "$work/$daemon.pid"; done
  if [ -n "${KEEP:-}" ]; then echo "kept: $work"; else rm -rf "$work"; fi
}
trap tear_down EXIT
trap 'exit 1' INT TERM

free_port() { # one that nobody answers on
  local port
  while port=$((20000 + RANDOM % 10000)); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo $port; return; }
  done
}
start_cluster() {
  mkdir -m 700 "$work/munge"
  head -c 1024 /dev/urandom >"$work/munge/key"
  chmod 400 "$work/munge/key"
  munged --force --key-file="$work/munge/key" --socket="$work/munge.socket" --pid-file="$work/munged.pid" \
    --log-file="$work/munge/log" --seed-file="$work/munge/seed" || return
  local controller first second
  controller=$(free_port) first=$(free_port) second=$(free_port)
  # No cgroups, no accounting: nothing outside the folder is touched.
  cat >"$work/slurm.conf" <<END
ClusterName=cinch
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool-%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd-%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
NodeName=node[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$first,$second] CPUs=4
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2
END
  export SLURM_CONF=$work/slurm.conf
  mkdir "$work/state" "$work/spool-node1" "$work/spool-node2"
  slurmctld -c -f "$SLURM_CONF" && slurmd -N node1 -f "$SLURM_CONF" && slurmd -N node2 -f "$SLURM_CONF" || return
  local i
  for i in $(seq 300); do
    [ "$(sinfo -h -t idle -o %D 2>/dev/null | head -n 1)" = 2 ] && return
    sleep 0.1
  done
  tail -n 20 "$work"/*.log
  return 1
}
start_cluster || { fail "the cluster did not start"; exit 1; }

cd "$work" || exit 1
"$cinch" convert "$model" student --to gqa:2 --method mean --no-refit --calibration-tokens 512 --calibration-window 64 \
  >convert.log 2>&1 || { fail "no student: $(cat convert.log)"; exit 1; }
training=(--teacher "$model" --data "$text" --tokens "${TOKENS:-163840}" --window 128 --batch 8 --micro-batch 2
  --validation-windows 4 --save-every 5)
[ -n "${ZERO:-}" ] && training+=(--zero "$ZERO")
weights() { ls "$1" 2>/dev/null | grep -E '^model.*\.(safetensors|h5)$'; }
same_weights() { # NAME FOLDER
  local file
  checks=$((checks + 1))
  [ -n "$(weights "$2")" ] || fail "$1: wrote no weights"
  for file in $(weights whole); do cmp "whole/$file" "$2/$file" || fail "$1: other weights than those of the uninterrupted run"; done
}
step() { timeout 300 srun --kill-on-bad-exit=1 "$@"; } # OPTIONS PROGRAM ARGUMENTS
steps_done() { cat "$1" 2>/dev/null | wc -l; }
wait_for_steps() { # METRICS COUNT
  local i
  for i in $(seq 1200); do
    [ "$(steps_done "$1")" -ge "$2" ] && return
    sleep 0.05
  done
  fail "$1 has no $2 steps after 60 s"
}

step -N 1 -n 2 "$cinch" uptrain student whole "${training[@]}" >whole.log 2>&1 || fail "two tasks on a node: $(cat whole.log)"
same_weights "two tasks on a node" whole

MASTER_ADDR=$(hostname) step -N 2 -n 2 "$cinch" uptrain student nodes "${training[@]}" >nodes.log 2>&1 ||
  fail "a task on each of two nodes: $(cat nodes.log)"
same_weights "a task on each of two nodes" nodes

# What interrupts the job, each time after some steps of its own: a request to its script, which hands it on; one to its tasks;
# a job that goes before it.
interruptions=("scancel --batch --signal=USR1" "scancel --signal=USR1" preempt)
preempt() { sbatch --partition=urgent --nodes=2 --exclusive --output=/dev/null --wrap "sleep 1" >/dev/null; }
fact_of() { grep -oE "\b$2=[A-Z0-9]+" <<<"$1" | cut -d= -f2; }
job=$(CINCH=$cinch sbatch --parsable --cpus-per-task=1 --output=batch.log "$batch" student batch "${training[@]}")
done_to_it=0 steps_before=0
for i in $(seq 1500); do
  facts=$(scontrol show job "$job") # at one time: a state that is older than the count of restarts would mislead
  case $(fact_of "$facts" JobState) in
    PENDING) # with all steps of its last run written; for two minutes, if nobody says otherwise; not at once, as the node still
      # refuses what it has just ended
      steps_before=$(steps_done .batch.cinch-train/metrics.jsonl)
      sleep 3
      scontrol update JobId="$job" StartTime=now 2>/dev/null ;;
    RUNNING)
      if [ $done_to_it -lt ${#interruptions[@]} ] && [ "$(fact_of "$facts" Restarts)" = $done_to_it ] &&
        [ "$(steps_done .batch.cinch-train/metrics.jsonl)" -ge $((steps_before + 8)) ]; then
        ${interruptions[done_to_it]} "$job"
        done_to_it=$((done_to_it + 1))
      fi ;;
    COMPLETED | FAILED | CANCELLED | TIMEOUT | NODE) break ;;
  esac
  sleep 0.1
done
[ "$(fact_of "$facts" JobState)" = COMPLETED ] && [ "$(fact_of "$facts" Restarts)" = 3 ] ||
  fail "the batch job: $(head -n 5 <<<"$facts"), expected JobState=COMPLETED Restarts=3: $(cat batch.log)"
same_weights "the batch job that was interrupted three times" batch

# A task that is killed ends the step; a state is there.
step -N 1 -n 2 "$cinch" uptrain student killed "${training[@]}" >killed.log 2>&1 &
running=$!
wait_for_steps .killed.cinch-train/metrics.jsonl 12
for process in /proc/[0-9]*; do
  [ "$(tr '\0' ' ' 2>/dev/null <"$process/environ" | grep -oE '\bSLURM_PROCID=[0-9]+')" = SLURM_PROCID=1 ] &&
    tr '\0' ' ' <"$process/cmdline" | grep -q "uptrain student killed" && kill -KILL "${process#/proc/}" && break
done
wait $running
code=$?
checks=$((checks + 1))
[ $code -ne 0 ] && [ $code -ne 124 ] || fail "a step with a killed task: exit $code: $(cat killed.log)"
step -N 1 -n 2 "$cinch" uptrain student killed "${training[@]}" --resume >killed.log 2>&1 || fail "after a kill: $(cat killed.log)"
same_weights "after a kill" killed

checks=$((checks + 1))
timeout 60 sbatch --wait -N 1 -n 2 --output=nobody.log --wrap "'$cinch' uptrain student nobody ${training[*]@Q}" >/dev/null
code=$?
[ $code = 2 ] && grep -q SLURM_NTASKS nobody.log && grep -q srun nobody.log || fail "sbatch without srun: exit $code: $(cat nobody.log)"

echo "$checks checks"
[ $failures -eq 0 ] && echo "all held" || echo "$failures failures"
[ $failures -eq 0 ]
