#!/usr/bin/env bash
# What bench/decode_table.py and bench/plot_decode.py make of a report that `cinch bench kernels` has just written, and of
# lines as the peers write them. Exit 0: both did; 77: no matplotlib for the picture (the table held); 1: something did not.
# Usage: plot_decode.sh CINCH SOURCE_FOLDER
set -u
cinch=$1 bench=$2/bench
python=${CINCH_TRANSFORMERS:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*"; exit 1; }

command -v "$python" >/dev/null || { echo "SKIPPED: no $python"; exit 77; }
for kind in "latent --rank 64,96 --rope-dim 32" "grouped --kv-heads 2 --head-dim 64"; do
  # shellcheck disable=SC2086
  "$cinch" bench kernels --kind $kind --heads 4 --batch 1,2 --context 64 --quiet --output "$work/${kind%% *}.json" \
    >/dev/null || fail "cinch bench kernels --kind $kind"
done
common='"program": "decode_peers.py", "device": "a GPU", "driver": "1", "copy_gb_per_s": 1000, "attention": "mla", "layout": "paged"'
sizes='"batch": 1, "context": 64, "n_heads": 4, "n_kv_heads": 1, "kv_lora_rank": 64, "qk_rope_head_dim": 32, "cache_bytes": 12288'
{
  echo "what a program says beside its lines"
  echo "{$common, $sizes, \"kernel\": \"triton\", \"status\": \"ok\", \"us\": 9.5}"
  echo "{$common, $sizes, \"kernel\": \"broken\", \"status\": \"wrong\", \"error\": 0.5}"
} >"$work/peers.jsonl"

"$python" "$bench/decode_table.py" "$work"/*.json "$work/peers.jsonl" >"$work/table.md" || fail "decode_table.py"
rows=$(grep -c '^| \(mla\|gqa\) ' "$work/table.md")
[ "$rows" -eq 7 ] || fail "a table of $rows rows, expected 4 latents, 2 grouped, 1 of the peers: $(cat "$work/table.md")"
grep -q '| 9.5 | triton, paged |' "$work/table.md" || fail "no row of the peers: $(cat "$work/table.md")"
grep -q broken "$work/table.md" && fail "a wrong result is in the table"
grep -q 'gqa 2 x 64, g 2, H 4 | 2 x 64 |' "$work/table.md" || fail "no grouped case: $(cat "$work/table.md")"

if ! "$python" -c 'import matplotlib' 2>/dev/null; then
  echo "the table held; SKIPPED: $python has no matplotlib, which the picture needs"
  exit 77
fi
"$python" "$bench/plot_decode.py" "$work/plot.png" "$work"/*.json "$work/peers.jsonl" \
  --panel attention=mla,batch=1,context=64 --panel attention=gqa 2>"$work/err" || fail "plot_decode.py: $(cat "$work/err")"
[ -s "$work/err" ] && fail "plot_decode.py said: $(cat "$work/err")"
[ "$(head -c 4 "$work/plot.png" | tail -c 3)" = PNG ] || fail "no picture"
"$python" "$bench/plot_decode.py" "$work/none.png" "$work/latent.json" --panel attention=gqa 2>"$work/err" &&
  fail "a panel without lines was drawn"
grep -q 'nothing to draw' "$work/err" || fail "without lines: $(cat "$work/err")"
echo "all held"
