#!/usr/bin/env bash
# Faults of `cinch convert`: SIGKILL at random moments, Ctrl-C, a disk that fills up, a read-only target.
# Usage: convert_faults.sh CINCH MODEL [CONVERT OPTION...]. Exit 0: all held. Parts that need rights this user lacks say
# "skipped". KILLS in the environment: how many.
set -u
cinch=$1 model=$2 kills=${KILLS:-20}
shift 2
target=("$@")
[ $# -gt 0 ] || target=(--to gqa:2)
work=$(mktemp -d)
mounts=()
cleanup() {
  for m in "${mounts[@]:-}"; do [ -n "$m" ] && umount "$m"; done
  rm -rf "$work"
}
trap cleanup EXIT
failures=0
fail() { echo "FAILED: $*"; failures=$((failures + 1)); }

options=(--quiet "${target[@]}" --calibration-tokens 2048 --calibration-window 128)
convert() { "$cinch" convert "$model" "$@" "${options[@]}"; }
# The program itself, not a subshell around it, is what the signals must reach.
start_convert() {
  "$cinch" convert "$model" "$work/out" "${options[@]}" >/dev/null 2>&1 &
  pid=$!
}
digests() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }
must_equal() {
  local found
  found=$(digests "$1")
  [ "$found" = "$reference" ] || fail "$2: other bytes than an uninterrupted run"
  [ -e "$work/.out.cinch-partial" ] && fail "$2: the partial folder is still there"
}

start=$(date +%s%N)
convert "$work/whole/out" >/dev/null || { echo "FAILED: the uninterrupted run"; exit 1; }
duration=$((($(date +%s%N) - start) / 1000000))
reference=$(digests "$work/whole/out")
echo "uninterrupted: ${duration} ms"

RANDOM=20261124
for i in $(seq "$kills"); do
  moment=$(((RANDOM * 32768 + RANDOM) % (duration + duration / 10)))
  start_convert
  sleep "$(printf '%d.%03d' $((moment / 1000)) $((moment % 1000)))"
  kill -9 "$pid" 2>/dev/null
  wait "$pid" 2>/dev/null
  [ -e "$work/out" ] && [ "$(digests "$work/out")" != "$reference" ] && fail "kill $i at $moment ms: an incomplete output has its real name"
  leftover=$(find "$work" -maxdepth 1 -mindepth 1 ! -name whole ! -name out ! -name .out.cinch-partial)
  [ -n "$leftover" ] && fail "kill $i at $moment ms: left $leftover"
  partial=$(find "$work/.out.cinch-partial" -mindepth 1 2>/dev/null | wc -l)
  layers=$(find "$work/.out.cinch-partial/layers" -name '*.safetensors' 2>/dev/null | wc -l)
  convert "$work/out" --resume >/dev/null 2>"$work/err" || fail "kill $i at $moment ms: --resume: $(cat "$work/err")"
  must_equal "$work/out" "kill $i at $moment ms"
  echo "kill $i at $moment ms: $layers layers kept ($partial files), resumed"
  rm -rf "$work/out" "$work/err"
done

start_convert
sleep "$(printf '%d.%03d' $((duration / 2000)) $((duration / 2 % 1000)))"
kill -INT "$pid"
wait "$pid"
code=$?
if [ $code -ne 0 ]; then
  [ $code -eq 130 ] || fail "Ctrl-C: exit $code, expected 130"
  convert "$work/out" >/dev/null 2>"$work/err" && fail "Ctrl-C: a second run without --resume went on"
  grep -q -- --resume "$work/err" || fail "Ctrl-C: the message does not name --resume"
fi
convert "$work/out" --resume >/dev/null || fail "Ctrl-C: --resume"
must_equal "$work/out" "Ctrl-C"
rm -rf "$work/out" "$work/err"

# A file size limit stands for a disk that fills while the result is written: the state stays, and --resume finishes.
(
  trap '' XFSZ
  ulimit -f 256
  convert "$work/out" >/dev/null 2>"$work/err"
)
code=$?
[ $code -eq 6 ] || fail "file size limit: exit $code, expected 6: $(cat "$work/err")"
[ -e "$work/out" ] && fail "file size limit: an output is there"
convert "$work/out" --resume >/dev/null || fail "file size limit: --resume"
must_equal "$work/out" "file size limit"
rm -rf "$work/out" "$work/err"

mkdir "$work/disk"
if mount -t tmpfs -o size=300k tmpfs "$work/disk" 2>/dev/null; then
  mounts+=("$work/disk")
  convert "$work/disk/out" >/dev/null 2>"$work/err"
  code=$?
  [ $code -eq 6 ] || fail "small disk: exit $code, expected 6"
  grep -q "help:" "$work/err" || fail "small disk: no help: $(cat "$work/err")"
  [ -n "$(ls -A "$work/disk")" ] && fail "small disk: something was left there"
  mount -o remount,ro "$work/disk"
  convert "$work/disk/out" >/dev/null 2>"$work/err"
  code=$?
  [ $code -eq 6 ] || [ $code -eq 1 ] || fail "small read-only disk: exit $code"
  mount -o remount,size=64m,ro "$work/disk"
  convert "$work/disk/out" >/dev/null 2>"$work/err"
  code=$?
  [ $code -eq 1 ] || fail "read-only disk: exit $code, expected 1: $(cat "$work/err")"
  [ -n "$(ls -A "$work/disk")" ] && fail "read-only disk: something was left there"
else
  echo "skipped: mounting a small disk needs root"
  chmod 555 "$work/disk"
  if [ ! -w "$work/disk" ]; then
    convert "$work/disk/out" >/dev/null 2>"$work/err"
    [ $? -eq 1 ] || fail "read-only folder: expected exit 1: $(cat "$work/err")"
    [ -n "$(ls -A "$work/disk")" ] && fail "read-only folder: something was left there"
  fi
  chmod 755 "$work/disk"
fi

[ $failures -eq 0 ] && echo "all faults handled" || echo "$failures failures"
[ $failures -eq 0 ]
