#!/bin/sh
# Starts cinch with a LibTorch 2.11: the folder named by CINCH_TORCH, ../torch beside this bin folder, the one that scripts/setup installed into
# the cache folder, or that of python3 on PATH. With LD_LIBRARY_PATH already naming one, nothing of this is needed.
prefix=$(dirname "$(dirname "$(readlink -f "$0")")")
cache=${CINCH_CACHE:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/cinch}

has_torch() { [ -e "$1/lib/libtorch_cpu.so" ]; }

start() {
  LD_LIBRARY_PATH=$1/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export LD_LIBRARY_PATH
  shift
  exec "$prefix/libexec/cinch" "$@"
}

if [ -n "${CINCH_TORCH:-}" ]; then
  has_torch "$CINCH_TORCH" && start "$CINCH_TORCH" "$@"
  echo "error: CINCH_TORCH=$CINCH_TORCH has no lib/libtorch_cpu.so" >&2
  exit 1
fi
for folder in "$prefix/torch" "$cache"/python/lib/python3*/site-packages/torch; do
  has_torch "$folder" && start "$folder" "$@"
done
IFS=:
for folder in ${LD_LIBRARY_PATH:-}; do
  [ -e "$folder/libtorch_cpu.so" ] && exec "$prefix/libexec/cinch" "$@"
done
folder=$(python3 -c 'from importlib.util import find_spec; print(find_spec("torch").submodule_search_locations[0])' 2>/dev/null)
[ -n "$folder" ] && has_torch "$folder" && start "$folder" "$@"
echo "error: LibTorch 2.11 is not found" >&2
echo "help: set CINCH_TORCH to its folder (the one with lib/libtorch_cpu.so), for example after: pip install torch==2.11.0" >&2
exit 1
