#!/usr/bin/env bash
# Exports of converted models in stock Hugging Face transformers, without remote code: runtime_check.py says what is
# compared.
# Usage: transformers.sh CINCH MODEL CALIBRATION [TINYLLAMA]. CINCH_TRANSFORMERS names the Python that has transformers;
# without one exit 77: skipped.
set -u
cinch=$1 model=$2 calibration=$3 tinyllama=${4:-}
here=$(cd "$(dirname "$0")" && pwd)
python=${CINCH_TRANSFORMERS:-${CINCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cinch}/transformers/bin/python}
if ! "$python" -c 'import torch, transformers' 2>/dev/null; then
  echo "skipped: there is no Python with transformers ($python); scripts/setup --transformers installs one"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HF_HUB_OFFLINE=1
FORMAT=hf DTYPES="f32 bf16 f16"
. "$here/export_cases.sh"

first_ids "$python" "$model" "$calibration" >"$work/stories.ids"
small=(--calibration-window 128 --calibration-tokens 8192 --dtype f32)
add_model stories "$model" "$work/stories.ids" 32 32 8 8 8 --calibration "$calibration" "${small[@]}"
add_shards stories 300KB
if [ -n "$tinyllama" ] && [ -e "$tinyllama/config.json" ]; then
  arbitrary_ids 200 4096 >"$work/tiny.ids"
  arbitrary_ids 20000 4096 >"$work/tiny.calibration.ids"
  add_model tinyllama "$tinyllama" "$work/tiny.ids" 256 256 32 104 24 --calibration "$work/tiny.calibration.ids" "${small[@]}"
else
  echo "skipped: tinyllama3m-mha, whose folder is not here"
fi
finish_cases
"$python" "$here/runtime_check.py" transformers "$cinch" "$work/cases.json" "$work"
