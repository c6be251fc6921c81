#!/usr/bin/env bash
# Faults of `cinch uptrain`: SIGKILL at random moments (with a state written every step, so that most fall into a save),
# Ctrl-C, SIGTERM to one process of several, a damaged state, a disk that fills up, another run into the same output.
# --resume must end with the bytes of an uninterrupted run after each.
# Usage: uptrain_faults.sh CINCH MODEL TEXT. Exit 0: all held. KILLS in the environment: how many.
set -u
cinch=$1 model=$2 text=$3 kills=${KILLS:-20}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
work=$(mktemp -d)
mounted=
cleanup() {
  [ -n "$mounted" ] && umount "$work/disk"
  rm -rf "$work"
}
trap cleanup EXIT
failures=0
fail() { echo "FAILED: $*"; failures=$((failures + 1)); }

"$cinch" convert "$model" "$work/student" --quiet --to mqa --method mean --no-refit --calibration-tokens 512 \
  --calibration-window 64 >/dev/null || exit 1
options=(--quiet --teacher "$model" --data "$text" --tokens 12288 --window 64 --batch 6 --micro-batch 2
  --validation-windows 3 --save-every 1)
uptrain() { "$cinch" uptrain "$work/student" "$@" "${options[@]}"; }
start_uptrain() { # OUT OPTIONS...: in the background, as $pid
  "$cinch" uptrain "$work/student" "$@" "${options[@]}" >"$work/said" 2>&1 &
  pid=$!
}
weights() { sha256sum <"$1/model.safetensors"; }
must_equal() { # OUT REFERENCE WHAT
  [ "$(weights "$1")" = "$2" ] || fail "$3: other weights than an uninterrupted run"
  [ -e "$(dirname "$1")/.$(basename "$1").cinch-train" ] && fail "$3: the run's folder is still there"
  rm -rf "$1"
}
wait_for_state() { # OUT: until a state is complete
  local folder
  folder=$(dirname "$1")/.$(basename "$1").cinch-train
  for _ in $(seq 600); do
    compgen -G "$folder/step_*/manifest.json" >/dev/null && return
    sleep 0.05
  done
  fail "no state was written"
}

start=$(date +%s%N)
uptrain "$work/whole" >/dev/null || { echo "FAILED: the uninterrupted run"; exit 1; }
duration=$((($(date +%s%N) - start) / 1000000))
reference=$(weights "$work/whole")
two=$(uptrain "$work/two" --nproc 2 --zero 2 >/dev/null && weights "$work/two") || fail "two processes"
rm -rf "$work/two"
echo "uninterrupted: ${duration} ms"

RANDOM=20261126
for i in $(seq "$kills"); do
  moment=$(((RANDOM * 32768 + RANDOM) % (duration + duration / 10)))
  start_uptrain "$work/out"
  sleep "$(printf '%d.%03d' $((moment / 1000)) $((moment % 1000)))"
  kill -9 "$pid" 2>/dev/null
  wait "$pid" 2>/dev/null
  states=$(compgen -G "$work/.out.cinch-train/step_*/manifest.json" | wc -l)
  halves=$(compgen -G "$work/.out.cinch-train/step_*.tmp" | wc -l)
  uptrain "$work/out" --resume >/dev/null 2>"$work/err" || fail "kill $i at $moment ms: --resume: $(cat "$work/err")"
  must_equal "$work/out" "$reference" "kill $i at $moment ms"
  echo "kill $i at $moment ms: $states states kept, $halves half-written, resumed"
done

start_uptrain "$work/out"
wait_for_state "$work/out"
uptrain "$work/out" --resume >/dev/null 2>"$work/err" && fail "two runs into one output"
grep -q "another process is training to this output" "$work/err" || fail "two runs into one output: $(cat "$work/err")"
kill -INT "$pid"
wait "$pid"
code=$?
[ "$code" = 130 ] || fail "Ctrl-C: exit code $code: $(cat "$work/said")"
uptrain "$work/out" >/dev/null 2>"$work/err" && fail "an unfinished run was ignored"
grep -q -- "--resume goes on with it" "$work/err" || fail "an unfinished run: $(cat "$work/err")"
uptrain "$work/out" --resume >/dev/null || fail "--resume after Ctrl-C"
uptrain "$work/out" --resume >/dev/null 2>"$work/err" || fail "--resume of a finished run: $(cat "$work/err")"
uptrain "$work/out" >/dev/null 2>"$work/err" && fail "an existing output was replaced"
must_equal "$work/out" "$reference" "Ctrl-C"
echo "Ctrl-C: stopped with 130, resumed"

start_uptrain "$work/out" --nproc 2 --zero 2
wait_for_state "$work/out"
kill -TERM "$(pgrep -P "$pid" | tail -1)"
wait "$pid"
code=$?
[ "$code" = 130 ] || fail "SIGTERM to one process: exit code $code: $(cat "$work/said")"
uptrain "$work/out" --nproc 2 --zero 2 --resume >/dev/null || fail "--resume after SIGTERM"
must_equal "$work/out" "$two" "SIGTERM to one of two processes"
echo "SIGTERM to one of two processes: all stopped with 130 at one step, resumed"

start_uptrain "$work/out" --nproc 2 --zero 2
wait_for_state "$work/out"
kill -KILL "$(pgrep -P "$pid" | tail -1)"
wait "$pid"
code=$?
[ "$code" != 0 ] || fail "SIGKILL to one process: exit code 0"
[ -z "$(pgrep -P "$pid")" ] || fail "SIGKILL to one process: orphans"
uptrain "$work/out" --nproc 2 --zero 2 --resume >/dev/null || fail "--resume after SIGKILL of one process"
must_equal "$work/out" "$two" "SIGKILL to one of two processes"
echo "SIGKILL to one of two processes: the other ended too ($code), resumed"

start_uptrain "$work/out" --nproc 2 --zero 2
wait_for_state "$work/out"
kill -INT "$pid"
wait "$pid"
share=$(ls -d "$work"/.out.cinch-train/step_*/share_1_of_2.safetensors | sort -V | tail -1)
truncate -s -100 "$share"
uptrain "$work/out" --resume >/dev/null 2>"$work/err"
code=$?
[ "$code" = 3 ] && grep -q "share_1_of_2.safetensors" "$work/err" || fail "a truncated share: $code, $(cat "$work/err")"
rm -r "$(dirname "$share")"
uptrain "$work/out" --nproc 2 --zero 2 --resume >/dev/null 2>"$work/err" || fail "going on from the state before: $(cat "$work/err")"
must_equal "$work/out" "$two" "a truncated share"
echo "a truncated share: refused by name; gone on from the state before"

mkdir "$work/disk"
if mount -t tmpfs -o size=2m tmpfs "$work/disk" 2>/dev/null; then
  mounted=yes
  uptrain "$work/disk/out" >/dev/null 2>"$work/err"
  code=$?
  [ "$code" = 6 ] && grep -q "help: " "$work/err" || fail "a full disk: $code, $(cat "$work/err")"
  mount -o remount,size=64m "$work/disk"
  uptrain "$work/disk/out" --resume >/dev/null 2>"$work/err" || fail "--resume after a full disk: $(cat "$work/err")"
  must_equal "$work/disk/out" "$reference" "a full disk"
  echo "a full disk: exit code 6, resumed with more space"
else
  echo "a full disk: skipped, mounting needs root"
fi

[ "$failures" = 0 ] && echo "all held" || echo "$failures failures"
exit $((failures > 0))
