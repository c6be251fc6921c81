# Shared by the scripts of this folder; sourced by bash, not run. Says where things are and builds.

set -euo pipefail

source_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
requirements=$source_dir/scripts/requirements.txt

say() { printf '%s\n' "cinch: $*" >&2; }

# fail MESSAGE [HELP]
fail() {
  printf '%s\n' "error: $1" >&2
  [ $# -lt 2 ] || printf '%s\n' "help: $2" >&2
  exit 1
}

# The cache folder holds what is downloaded or compiled once: the virtual environment with LibTorch, and ccache's objects.
default_cache() {
  local home=${HOME:-}
  [ -n "$home" ] || home=$(getent passwd "$(id -u)" | cut -d: -f6 || true)
  if [ -n "${XDG_CACHE_HOME:-}" ]; then
    echo "$XDG_CACHE_HOME/cinch"
  elif [ -n "$home" ] && mkdir -p "$home/.cache" 2>/dev/null; then
    echo "$home/.cache/cinch"
  else
    echo "${TMPDIR:-/tmp}/cinch-$(id -u)"
  fi
}
export CINCH_CACHE=${CINCH_CACHE:-$(default_cache)}
venv=$CINCH_CACHE/python
export HOME=${HOME:-$CINCH_CACHE}

# LibTorch's threads would else spin while they wait, which on a machine that others use costs them and us most of the time.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

system_python() { if [ -x /usr/bin/python3 ]; then echo /usr/bin/python3; else command -v python3 || true; fi; }

# A LibTorch of the user's own: a folder on CMAKE_PREFIX_PATH, or the share/cmake folder of one.
own_torch() {
  local folder
  local -a folders
  IFS=':;' read -r -a folders <<<"${CMAKE_PREFIX_PATH:-}"
  for folder in ${folders[@]+"${folders[@]}"}; do
    for folder in "$folder" "$folder/../.."; do
      if [ -e "$folder/lib/libtorch_cpu.so" ] && [ -e "$folder/include/ATen/ATen.h" ]; then
        (cd "$folder" && pwd)
        return
      fi
    done
  done
}

# The LibTorch that the build uses: the user's own, else the one that scripts/setup installed.
torch_folder() {
  local folder
  folder=$(own_torch)
  if [ -n "$folder" ]; then echo "$folder"; return; fi
  for folder in "$venv"/lib/python3*/site-packages/torch; do
    if [ -e "$folder/lib/libtorch_cpu.so" ]; then echo "$folder"; return; fi
  done
}

# A compiler of CUDA 13: on PATH, in the usual place, or from the wheels. `version` lines name the release.
cuda_compiler() {
  local nvcc
  for nvcc in "$(command -v nvcc || true)" "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" /usr/local/cuda/bin/nvcc \
    "$venv"/lib/python3*/site-packages/nvidia/cu13/bin/nvcc; do
    if [ -x "$nvcc" ] && "$nvcc" --version 2>/dev/null | grep -q 'release 13\.'; then echo "$nvcc"; return; fi
  done
}

cuda_wanted() { case ${CINCH_CUDA:-ON} in OFF | off | 0 | no | NO | FALSE | false) return 1 ;; esac; }

# Two compilers of ATen code need about 2.5 GiB each.
build_jobs() {
  local cores memory_gib jobs
  cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)  # which takes these for its own
  memory_gib=$(awk '/MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo 2>/dev/null || echo 4)
  jobs=$((memory_gib * 2 / 5))
  [ "$jobs" -ge 1 ] || jobs=1
  [ "$jobs" -le "$cores" ] || jobs=$cores
  echo "${CINCH_JOBS:-$jobs}"
}

# build PRESET [TARGET...]: configures when needed and builds.
build() {
  local preset=$1
  shift
  local torch
  torch=$(torch_folder)
  local -a options=(-DCINCH_TORCH="$torch")
  case $preset in release | debug) if cuda_wanted; then options+=(-DCINCH_CUDA=ON); else options+=(-DCINCH_CUDA=OFF); fi ;; esac
  say "building ($preset preset, LibTorch from $torch)"
  (cd "$source_dir" && cmake --preset "$preset" "${options[@]}" >&2 &&
    cmake --build "build/$preset" -j "$(build_jobs)" ${@:+--target "$@"} >&2)
}
