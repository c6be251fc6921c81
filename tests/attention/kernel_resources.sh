#!/usr/bin/env bash
# What ptxas said of every compiled kernel, against the budgets: nothing spilled, no stack, registers, static shared
# memory; and that every kernel was compiled for every architecture.
#
#   kernel_resources.sh "80;90a;120" <log of ptxas -v>...
#
# Registers: decode kernels by their template numbers (attention/kernels/decode/tiling.h, register_budget), the cache
# append and the row states of prefill 64 (half of a multiprocessor's threads), others 255: prefill kernels run two
# blocks of 128 threads, or one of 256, on a multiprocessor.
# Dynamic shared memory is the tiling's, and its budget is tested there.
set -euo pipefail
architectures=$1
shift
awk -v wanted="$architectures" '
  function budget(name,   n) {
    if (name ~ /[0-9](merge|map)_kernelI/) return 128
    if (name ~ /append_kernelI|prefill_row_states_kernelI/) return 64
    if (!match(name, /decode_kernelI[A-Za-z0-9_]*Li[12]ELi[0-9]+ELi[0-9]+E/)) return 255
    n = substr(name, RSTART, RLENGTH)
    sub(/.*Li1ELi4ELi1E$/, "128", n); sub(/.*Li1ELi8ELi1E$/, "168", n); sub(/.*Li1ELi8ELi[24]E$/, "224", n)
    sub(/.*Li2ELi4ELi1E$/, "168", n); sub(/.*Li2ELi8ELi[124]E$/, "255", n)
    return n + 0  # an unknown kernel has no registers to spend
  }
  function fault(text) { printf "FAULT %s (%s): %s\n", kernel, arch, text; faults++ }
  /Compiling entry function/ {
    split($0, quoted, "\047"); kernel = quoted[2]; arch = quoted[4]; seen[kernel, arch] = 1; names[kernel] = 1; count++
  }
  /bytes stack frame/ {
    if ($1 != 0 || $5 != 0 || $9 != 0) fault($0)
  }
  /Used [0-9]+ registers/ {
    match($0, /Used [0-9]+/); used = substr($0, RSTART + 5, RLENGTH - 5) + 0
    if (used > budget(kernel)) fault(used " registers, budget " budget(kernel))
    if (match($0, /[0-9]+ bytes smem/) && substr($0, RSTART, RLENGTH) + 0 > 49152) fault("static shared memory: " $0)
    if (used > most[arch]) most[arch] = used
    measured++
  }
  END {
    n = split(wanted, list, ";")
    for (name in names) for (i = 1; i <= n; i++) if (!((name, "sm_" list[i]) in seen)) {
      printf "FAULT %s: not compiled for sm_%s\n", name, list[i]; faults++
    }
    if (count == 0 || count != measured) { printf "FAULT %d kernels, %d measured\n", count, measured; faults++ }
    for (a in most) printf "%s: at most %d registers\n", a, most[a]
    printf "%d kernels looked at, %d faults\n", count, faults
    exit faults > 0
  }' "$@"
