#!/usr/bin/env bash
# Uptraining by torchrun: two processes uninterrupted; two of which one is killed in the middle, after which torchrun starts
# both again; a request to stop, after which --resume goes on; two torchruns, as on two nodes. All write the same weights.
# Usage: torchrun.sh CINCH MODEL TEXT. CINCH_TORCH_PYTHON names a Python that has torch; without one exit 77: skipped.
# Exit 0: all held. KEEP=1 keeps the folder, ZERO=LEVEL adds --zero, TOKENS is how much is trained.
set -u
cinch=$1 model=$2 text=$3
python=
cache=${CINCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cinch}
for candidate in ${CINCH_TORCH_PYTHON:-"$cache/transformers/bin/python" "$cache/python/bin/python"}; do
  "$candidate" -c 'import torch.distributed.run' 2>/dev/null && python=$candidate && break
done
if [ -z "$python" ]; then
  echo "skipped: there is no Python with torch in $cache; scripts/setup --transformers installs one"
  exit 77
fi
unset "${!SLURM_@}" "${!OMPI_@}" "${!PMI_@}" RANK WORLD_SIZE LOCAL_RANK
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

work=$(mktemp -d)
failures=0 checks=0 launched=()
fail() { echo "FAILED: $*"; failures=$((failures + 1)); }
tear_down() {
  local pid
  for pid in ${launched[@]+"${launched[@]}"}; do kill "$pid" 2>/dev/null; done
  wait
  if [ -n "${KEEP:-}" ]; then echo "kept: $work"; else rm -rf "$work"; fi
}
trap tear_down EXIT
trap 'exit 1' INT TERM
cd "$work" || exit 1
"$cinch" convert "$model" student --to gqa:2 --method mean --no-refit --calibration-tokens 512 --calibration-window 64 \
  >convert.log 2>&1 || { fail "no student: $(cat convert.log)"; exit 1; }
training=(--teacher "$model" --data "$text" --tokens "${TOKENS:-40960}" --window 128 --batch 8 --micro-batch 2
  --validation-windows 4 --save-every 5)
[ -n "${ZERO:-}" ] && training+=(--zero "$ZERO")

torchrun() { # OUT OPTIONS...
  local out=$1
  shift
  # `exec`: signals are for torchrun, not for a shell or `timeout` around it, which would not end it.
  exec "$python" -m torch.distributed.run --no-python "$@" "$cinch" uptrain student "$out" "${training[@]}" --resume
}
start() { # LOG OUT OPTIONS...: sets `running`
  local log=$1
  shift
  torchrun "$@" >"$log" 2>&1 &
  running=$!
  launched+=("$running")
}
finish() { # PROCESS: sets `code`; 124 after five minutes
  local i
  for i in $(seq 3000); do
    kill -0 "$1" 2>/dev/null || { wait "$1"; code=$?; return; }
    sleep 0.1
  done
  kill "$1"
  code=124
}
weights() { ls "$1" 2>/dev/null | grep -E '^model.*\.(safetensors|h5)$'; }
same_weights() { # NAME FOLDER
  local file
  checks=$((checks + 1))
  [ -n "$(weights "$2")" ] || fail "$1: wrote no weights"
  for file in $(weights whole); do cmp "whole/$file" "$2/$file" || fail "$1: other weights than those of the uninterrupted run"; done
}
must_end_well() { # NAME LOG
  [ $code = 0 ] || fail "$1: exit $code: $(cat "$2")"
}
wait_for_steps() { # OUT COUNT
  local i
  for i in $(seq 1200); do
    [ "$(cat ".$1.cinch-train/metrics.jsonl" 2>/dev/null | wc -l)" -ge "$2" ] && return
    sleep 0.05
  done
  fail "$1 has no $2 steps after 60 s"
}
free_port() { # one that nobody answers on
  local port
  while port=$((20000 + RANDOM % 10000)); do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo $port; return; }
  done
}
worker() { # OUT RANK: the process of this rank
  local process
  for process in /proc/[0-9]*; do
    if tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qx "RANK=$2" && tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -q "uptrain student $1 "; then
      echo "${process#/proc/}"
      return
    fi
  done
}
port() { echo "--master-port $(free_port)"; }

start whole.log whole --nproc-per-node 2 $(port)
finish $running
must_end_well "two processes" whole.log
same_weights "two processes" whole

# The store of the agent is that of the first attempt, with its keys.
start killed.log killed --nproc-per-node 2 --max-restarts 1 $(port)
wait_for_steps killed 12
victim=$(worker killed 1)
[ -n "$victim" ] && kill -KILL "$victim" || fail "there is no process of rank 1"
finish $running
must_end_well "one of two killed" killed.log
grep -q 'exitcode: -9' killed.log || fail "torchrun saw no killed process: $(cat killed.log)"
same_weights "one of two killed" killed

start stopped.log stopped --nproc-per-node 2 --signals-to-handle SIGTERM,SIGINT,SIGUSR1 $(port)
wait_for_steps stopped 12
kill -USR1 $running
finish $running
checks=$((checks + 1))
[ $code != 0 ] && [ $code != 124 ] && [ ! -e stopped ] || fail "a request to stop: exit $code: $(cat stopped.log)"
start stopped.log stopped --nproc-per-node 2 $(port)
finish $running
must_end_well "after a request to stop" stopped.log
same_weights "after a request to stop" stopped

two=(--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id two --rdzv-endpoint "localhost:$(free_port)" --local-addr 127.0.0.1)
start first.log nodes "${two[@]}"
first=$running
start second.log nodes "${two[@]}"
finish $running
must_end_well "two torchruns" second.log
finish $first
must_end_well "two torchruns" first.log
same_weights "two torchruns" nodes

echo "$checks checks"
[ $failures -eq 0 ] && echo "all held" || echo "$failures failures"
[ $failures -eq 0 ]
