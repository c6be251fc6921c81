#!/usr/bin/env bash
# Every command with closed, full and broken standard streams, and with Ctrl-C at several moments: the exit code is the
# documented one, no crash, no stack trace, nothing half-written under its real name and no temporary file left.
# Usage: streams_and_signals.sh CINCH MODEL TEXT. Exit 0: all held.
set -u
cinch=$1 model=$2 text=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0 checks=0
fail() { echo "FAILED: $*"; failures=$((failures + 1)); }

command_of() { # sets `command`; what is written goes to $work/out or $work/out.h5
  case $1 in
    inspect) command=(inspect "$model" --tensors) ;;
    plan) command=(plan "$model" --to mqa) ;;
    verify) command=(verify "$model") ;;
    doctor) command=(doctor) ;;
    completion) command=(completion bash) ;;
    eval) command=(eval "$model" --text "$text" --max-tokens 2000 --window 100) ;;
    generate) command=(generate "$model" --prompt Once -n 200) ;;
    bench) command=(bench decode "$model" --batch 1,8 --context 64,256 --steps 5) ;;
    tokenize) command=(tokenize "$text" "$work/out.h5" --model "$model") ;;
    export) command=(export "$model" "$work/out" --format hf) ;;
    convert) command=(convert "$model" "$work/out" --to gqa:2 --method mean --no-refit --calibration-tokens 512 --calibration-window 64) ;;
  esac
}
clear_work() { find "$work" -mindepth 1 -delete; }
must_exit() { # NAME CODE EXPECTED...
  local name=$1 code=$2 expected
  shift 2
  checks=$((checks + 1))
  for expected in "$@"; do [ "$code" -eq "$expected" ] && return; done
  fail "$name: exit $code, expected $*: $(cat "$work/err" 2>/dev/null)"
}
readable() { grep -qiE 'terminate|assert|exception raised|std::' "$work/err" && fail "$1: not a message for people: $(cat "$work/err")"; }
left_behind() { # names of temporary files, which nobody must see after an end in order
  find "$work" -mindepth 1 -name '.*' ! -name '.out.cinch-partial' ! -path '*/.out.cinch-partial/*'
}

for name in inspect plan verify doctor completion eval generate bench tokenize export convert; do
  command_of "$name"
  "$cinch" "${command[@]}" <&- >/dev/null 2>"$work/err"
  must_exit "$name with stdin closed" $? 0
  readable "$name with stdin closed"; clear_work
  "$cinch" "${command[@]}" 2>/dev/null | true
  must_exit "$name into a pipe that nobody reads" "${PIPESTATUS[0]}" 0; clear_work
  "$cinch" "${command[@]}" >&- 2>"$work/err"
  must_exit "$name with stdout closed" $? 1
  grep -q '^error: cannot write to standard output' "$work/err" || fail "$name with stdout closed: $(cat "$work/err")"
  readable "$name with stdout closed"; clear_work
  "$cinch" "${command[@]}" >/dev/full 2>"$work/err"
  must_exit "$name with stdout full" $? 6
  readable "$name with stdout full"; clear_work
  "$cinch" "${command[@]}" >/dev/null 2>&-
  must_exit "$name with stderr closed" $? 0
  if [ -e "$work/out" ]; then "$cinch" verify "$work/out" --quiet >/dev/null || fail "$name with stderr closed: wrote a damaged model"; fi
  clear_work
  "$cinch" "${command[@]}" >/dev/null 2>/dev/full
  must_exit "$name with stderr full" $? 0; clear_work
  "$cinch" "${command[@]}" 2>&1 >/dev/null | true
  must_exit "$name with a broken stderr" "${PIPESTATUS[0]}" 0; clear_work
done

for name in eval generate bench tokenize export convert verify; do
  command_of "$name"
  [ "$name" = convert ] || [ "$name" = export ] || "$cinch" "${command[@]}" >/dev/null 2>&1
  cp -a "$work/out.h5" "$work/kept" 2>/dev/null
  rm -rf "$work/out"
  [ "$name" = tokenize ] && command+=(--force)
  case $name in eval | bench) command+=(--output "$work/report.json") ;; esac
  for moment in 0.01 0.2 0.3 0.4 0.45 0.5 0.6 0.8; do
    "$cinch" "${command[@]}" >/dev/null 2>"$work/err" &
    pid=$!
    sleep "$moment"
    kill -INT $pid 2>/dev/null
    wait $pid
    must_exit "$name, Ctrl-C after $moment s" $? 0 130
    readable "$name, Ctrl-C after $moment s"
    if grep -q '^error' "$work/err"; then
      grep -q '^error: interrupted' "$work/err" || fail "$name, Ctrl-C after $moment s: $(cat "$work/err")"
      grep -q '^help: ' "$work/err" || fail "$name, Ctrl-C after $moment s: no help"
    fi
    [ -n "$(left_behind)" ] && fail "$name, Ctrl-C after $moment s: left $(left_behind)"
    if [ -e "$work/out" ]; then "$cinch" verify "$work/out" --quiet >/dev/null || fail "$name, Ctrl-C after $moment s: a damaged output"; fi
    if [ -e "$work/kept" ]; then cmp -s "$work/kept" "$work/out.h5" || fail "$name, Ctrl-C after $moment s: the old output was harmed"; fi
    rm -rf "$work/out" "$work/.out.cinch-partial" "$work/report.json"
  done
  clear_work
done

echo "$checks runs"
[ $failures -eq 0 ] && echo "all held" || echo "$failures failures"
[ $failures -eq 0 ]
