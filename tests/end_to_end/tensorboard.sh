#!/usr/bin/env bash
# TensorBoard's own reader finds in event files what metrics.jsonl says, of a run that was killed and resumed too, and of
# an uptraining.
# Usage: tensorboard.sh TRAIN_TEST CINCH MODEL TEXT. CINCH_TRANSFORMERS names the Python that has tensorboard; without one exit 77:
# skipped.
set -u
train_test=$1 cinch=$2 model=$3 text=$4
here=$(cd "$(dirname "$0")" && pwd)
python=${CINCH_TRANSFORMERS:-${CINCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cinch}/transformers/bin/python}
if ! "$python" -c 'from tensorboard.backend.event_processing import event_accumulator' 2>/dev/null; then
  echo "skipped: there is no Python with tensorboard ($python); scripts/setup --transformers installs one"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
CINCH_EVENT_FOLDER=$work "$train_test" --gtest_filter=EventFile.ARunThatWasKilledAndResumed --gtest_brief=1 || exit 1
"$python" "$here/event_check.py" "$work/metrics.jsonl" "$work/events" || exit 1
"$cinch" uptrain "$model" "$work/out" --teacher "$model" --data "$text" --tokens 4096 --window 64 --batch 4 --quiet >/dev/null || exit 1
"$python" "$here/event_check.py" "$work/out/metrics.jsonl" "$work/out"
