#!/usr/bin/env bash
# Faults of every writer: a disk that fills up and a read-only target, for convert and export to each format and for
# tokenize. Each must end with exit code 6 (full) or 1 (read-only), say what and which file, name a way out, and leave
# nothing but what was there before. A conversion that had begun may keep its finished layers: then --resume must end
# with the bytes of an uninterrupted run.
# Usage: writer_faults.sh CINCH MODEL TEXT. Exit 0: all held. Without the right to mount, exit 77: skipped.
set -u
cinch=$1 model=$2 text=$3
work=$(mktemp -d)
disk=$work/disk
mounted=
cleanup() {
  [ -n "$mounted" ] && umount "$disk"
  rm -rf "$work"
}
trap cleanup EXIT
failures=0 checks=0 resumed=0
fail() { echo "FAILED: $*"; failures=$((failures + 1)); }

mkdir "$disk"
if ! mount -t tmpfs -o size=64m tmpfs "$disk" 2>/dev/null; then
  echo "skipped: mounting a small disk needs root"
  exit 77
fi
mounted=yes
remount() { mount -o "remount,$1" "$disk"; }
digests() { (cd "$1" && find . -type f ! -path '*.cinch-partial/*' -print0 | sort -z | xargs -0r sha256sum); }
contents() { (cd "$disk" && find . -mindepth 1 ! -path '*.cinch-partial*' -printf '%p %y\n' | sort) && digests "$disk"; }

run_writer() { # WRITER OUT EXTRA...
  local writer=$1 out=$2
  shift 2
  case $writer in
    convert-*)
      "$cinch" convert "$model" "$out" --quiet --to gqa:2 --method mean --no-refit --calibration-tokens 512 \
        --calibration-window 64 --format "${writer#convert-}" "$@" ;;
    latent-*)
      "$cinch" convert "$model" "$out" --quiet --to mla --rank 24 --rope-dim 8 --method weight-svd \
        --format "${writer#latent-}" "$@" ;;
    statistics)
      "$cinch" convert "$model" "$work/converted" --quiet --force --to mla --rank 24 --rope-dim 8 --no-refit \
        --calibration-tokens 512 --calibration-window 64 --statistics "$out.h5" "$@" ;;
    export-*) "$cinch" export "$model" "$out" --format "${writer#export-}" --quiet "$@" ;;
    tokenize) "$cinch" tokenize "$text" "$out.h5" --model "$model" --quiet "$@" ;;
  esac
}

# What a conversion kept must be of use.
must_resume() { # NAME WRITER OUT
  local size
  size=$(findmnt -no OPTIONS "$disk" | grep -o 'size=[^,]*')
  remount size=64m,rw
  run_writer "$2" "$3" --resume >/dev/null 2>"$work/err" || fail "$1: --resume: $(cat "$work/err")"
  mkdir -p "$work/resumed" && mv "$3" "$work/resumed/old"
  [ "$(digests "$work/resumed")" = "$whole" ] || fail "$1: --resume: other bytes than an uninterrupted run"
  rm -rf "$work/resumed"
  [ "$3" = "$disk/old" ] && cp -a "$work/whole/old" "$disk/old"
  remount "$size"
  resumed=$((resumed + 1))
}

# The command writes to the disk and cannot.
must_fail() { # NAME CODE WRITER OUT EXTRA...
  local name=$1 expected=$2 before code
  shift 2
  before=$(contents)
  run_writer "$@" >"$work/out" 2>"$work/err"
  code=$?
  checks=$((checks + 1))
  [ $code -eq "$expected" ] || fail "$name: exit $code, expected $expected: $(cat "$work/err")"
  # Warnings about the conversion itself may come first; then the error comes first and names the target.
  grep -v '^warning: ' "$work/err" | head -1 | grep -q "^error: .*$disk" || fail "$name: no error that names the target: $(cat "$work/err")"
  grep -q '^help: ' "$work/err" || fail "$name: no help: $(cat "$work/err")"
  grep -qiE 'terminate|assert|exception raised|std::' "$work/err" && fail "$name: not a message for people: $(cat "$work/err")"
  [ -s "$work/out" ] && fail "$name: printed a result: $(cat "$work/out")"
  [ "$(contents)" = "$before" ] || fail "$name: the disk does not hold what it held before: $(diff <(echo "$before") <(contents))"
  if [ -e "$disk/.$(basename "$2").cinch-partial" ]; then
    # With --force an old output stands until the new one is complete; --resume then needs its place.
    [ "$2" = "$disk/old" ] && rm -rf "$disk/old"
    must_resume "$name" "$1" "$2"
  fi
}

for writer in convert-hf convert-safetensors convert-hdf5 convert-gguf latent-native latent-hdf5 statistics export-hf export-safetensors export-hdf5 export-gguf tokenize; do
  # What it writes when nothing is in the way stays beside as what no fault may harm.
  remount size=64m,rw
  find "$disk" -mindepth 1 -delete
  rm -rf "$work/whole"
  run_writer "$writer" "$disk/old" >/dev/null 2>"$work/err" || { fail "$writer: a plain run: $(cat "$work/err")"; continue; }
  mkdir "$work/whole" && cp -a "$disk"/old* "$work/whole/"
  whole=$(digests "$work/whole")
  blocks=$(du -sk "$disk" | cut -f1)
  for share in 2 40 90; do
    remount "size=$((blocks + blocks * share / 100))k"
    must_fail "$writer, $share% of the space it needs" 6 "$writer" "$disk/new"
    [ $writer = statistics ] || # a file of moments is reused, not replaced
      must_fail "$writer --force over its old output, $share% of the space" 6 "$writer" "$disk/old" --force
  done
  remount size=64m,ro
  must_fail "$writer, read-only disk" 1 "$writer" "$disk/new"
  [ $writer = statistics ] || must_fail "$writer --force, read-only disk" 1 "$writer" "$disk/old" --force
done

echo "$checks faults tried, $resumed conversions resumed"
[ $failures -eq 0 ] && echo "all faults handled" || echo "$failures failures"
[ $failures -eq 0 ]
