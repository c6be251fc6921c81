# Sourced by the scripts that load exports in other runtimes: converts models and exports them, and describes each export
# in $work/cases.json (runtime_check.py). Expects $cinch, $work, FORMAT (hf or gguf) and DTYPES.

: >"$work/cases.jsonl"
quietly() { "$@" --quiet >/dev/null 2>"$work/log" || { cat "$work/log"; echo "FAILED: $*"; exit 1; }; }

# exported MODEL NAME DTYPE: what the runtime loads of a model; prints its path.
exported() {
  local out=$work/$2-$3
  [ "$FORMAT" = hf ] || out=$out.gguf
  [ -e "$out" ] || quietly "$cinch" export "$1" "$out" --format "$FORMAT" --dtype "$3"
  echo "$out"
}

# add_model NAME SOURCE IDS RANK_OF_ALL ROTARY_OF_ALL HEAD RANK ROTARY CONVERT_OPTIONS...: the model at full size (hf), or
# as large as a table of one base may be (RANK_OF_ALL + HEAD), at RANK + ROTARY with a list of frequencies (hf) and with a
# table of one base, and with one shared head.
add_model() {
  local name=$1 source=$2 ids=$3 all=$4 all_rotary=$5 head=$6 rank=$7 rotary=$8 kind dtype
  shift 8
  local -a kinds=(wide geometric mqa)
  if [ "$FORMAT" = hf ]; then
    kinds=(full list geometric mqa)
    quietly "$cinch" convert "$source" "$work/$name-full" --to mla --rank "$all" --rope-dim "$all_rotary" --no-refit "$@"
    quietly "$cinch" convert "$source" "$work/$name-list" --to mla --rank "$rank" --rope-dim "$rotary" "$@"
  else
    quietly "$cinch" convert "$source" "$work/$name-wide" --to mla --rank "$all" --rope-dim "$head" --no-refit --for llama.cpp "$@"
  fi
  quietly "$cinch" convert "$source" "$work/$name-geometric" --to mla --rank "$rank" --rope-dim "$rotary" --for llama.cpp "$@"
  quietly "$cinch" convert "$source" "$work/$name-mqa" --to mqa "$@"
  for kind in "${kinds[@]}"; do
    for dtype in $DTYPES; do
      printf '{"name": "%s", "source": "%s", "native": "%s", "export": "%s", "dtype": "%s", "ids": "%s"}\n' "$name $kind" \
        "$(exported "$source" "$name-source" "$dtype")" "$work/$name-$kind" \
        "$(exported "$work/$name-$kind" "$name-$kind" "$dtype")" "$dtype" "$ids" >>"$work/cases.jsonl"
    done
  done
}

# add_shards NAME SIZE: the first export of NAME once more, in files of at most SIZE.
add_shards() {
  local first out=$work/$1-shards
  first=$(grep -m 1 "\"name\": \"$1 " "$work/cases.jsonl")
  quietly "$cinch" export "$(sed 's/.*"native": "\([^"]*\)".*/\1/' <<<"$first")" "$out" --format hf --dtype f32 --shard-size "$2"
  [ -e "$out/model.safetensors.index.json" ] || { echo "FAILED: $1 is not sharded"; exit 1; }
  sed "s|\"export\": \"[^\"]*\"|\"export\": \"$out\"|; s|\"dtype\": \"[^\"]*\"|\"dtype\": \"f32\"|; s|\"name\": \"[^\"]*\"|\"name\": \"$1 shards\"|" \
    <<<"$first" >>"$work/cases.jsonl"
}

# finish: $work/cases.json
finish_cases() { (echo '['; paste -sd, "$work/cases.jsonl"; echo ']') >"$work/cases.json"; }

# first_ids PYTHON MODEL TEXT: the first 300 tokens of a text, by a Python that has tokenizers.
first_ids() {
  "$1" -c 'import sys; from tokenizers import Tokenizer
print(*Tokenizer.from_file(sys.argv[1] + "/tokenizer.json").encode(open(sys.argv[2]).read()[:8000]).ids[:300])' "$2" "$3"
}

# arbitrary_ids N VOCABULARY: for models without a tokenizer; any will do as long as both programs get the same.
arbitrary_ids() { seq 1 "$1" | awk -v size="$2" '{printf "%d ", ($1 * 7919 + int($1 / 7) * 31) % (size - 3) + 3}'; }
