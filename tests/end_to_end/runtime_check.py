"""Loads exports in a stock runtime and compares them with cinch.

    runtime_check.py transformers|llama.cpp CINCH CASES.json WORK

CASES is a list of {"name", "source", "native", "export", "dtype", "ids"}: `source` the model before conversion in a form that
the runtime loads and `dtype` has, `native` the converted model as cinch has it, `export` what `cinch export` made of it,
`ids` a file of token ids. For each:

- every tensor of the file is used and none is missing (transformers; llama.cpp refuses such files itself), and tokenizer,
  chat template and generation settings are the source's;
- the largest difference of a logit from cinch's in fp32, and KL, are at most twice what the source model shows between the
  two programs in that type, or twice what the converted model itself loses when cinch computes it in that type (a converted
  model may be more sensitive than its source: the table shows both);
- in f32 also: 64 greedy tokens through the runtime's cache are cinch's own most likely ones.

Prints one line per case and writes WORK/results.json. Exit 1 when one fails.
"""
import ctypes
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

# Differences of single-precision sums in another order, which no two programs agree on.
FLOOR = {"max_abs": 2e-4, "kl": 1e-9}
NEW_TOKENS, PROMPT = 64, 16


class Transformers:
    def __init__(self):
        import torch
        import transformers
        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.torch, self.transformers = torch, transformers
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"

    def load(self, folder, dtype):
        kind = {"f32": self.torch.float32, "bf16": self.torch.bfloat16, "f16": self.torch.float16}[dtype]
        self.model, info = self.transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=kind, attn_implementation="eager", output_loading_info=True)
        self.model.eval()
        keys = ("missing_keys", "unexpected_keys", "mismatched_keys")
        return type(self.model).__name__, {key: sorted(map(str, info[key])) for key in keys if info.get(key)}

    def side_file_faults(self, source, export):
        """Tokenizer, chat template and generation settings are the source's."""
        if not (Path(source) / "tokenizer.json").exists():
            return []
        tokenizers = [self.transformers.AutoTokenizer.from_pretrained(folder) for folder in (source, export)]
        added = " ".join(token.content for token in tokenizers[0].added_tokens_decoder.values())
        text = f"Once upon a time, in 1874: naïve café, 日本語 {added} the end\n\n\tx"
        faults = [] if len({str(t(text).input_ids) for t in tokenizers}) == 1 else ["the tokenizers differ"]
        if len({str(t.chat_template) for t in tokenizers}) != 1:
            faults.append("the chat templates differ")
        ids = [self.transformers.GenerationConfig.from_pretrained(folder).eos_token_id for folder in (source, export)
               if (Path(folder) / "generation_config.json").exists()]
        return faults + (["the ends of text differ"] if len({str(i) for i in ids}) > 1 else [])

    def logits(self, ids):
        with self.torch.no_grad():
            return self.model(self.torch.tensor([ids])).logits[0].double().numpy()

    def generate(self, ids):
        with self.torch.no_grad():
            return self.model.generate(self.torch.tensor([ids]), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False,
                                       eos_token_id=None, pad_token_id=0)[0].tolist()


class LlamaCpp:
    def __init__(self):
        import llama_cpp
        self.api = llama_cpp
        self.version = f"llama.cpp of llama-cpp-python {llama_cpp.__version__}"
        self.lines = []

        @llama_cpp.llama_log_callback
        def keep(level, text, user):
            self.lines.append(text.decode("utf-8", "replace").rstrip())

        self.keep = keep
        llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()

    def load(self, file, dtype):
        api, self.lines = self.api, []
        parameters = api.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(str(file).encode(), parameters)
        if not self.model:
            return "not loaded", {"log": [line for line in self.lines if "error" in line.lower() or "missing" in line.lower()][-4:]}
        self.vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        name = ctypes.create_string_buffer(64)
        api.llama_model_meta_val_str(self.model, b"general.architecture", name, 64)
        return name.value.decode(), {}

    def side_file_faults(self, source, export):
        return []  # a GGUF's vocabulary is checked by tests/text and tests/model

    def context(self, tokens):
        api = self.api
        parameters = api.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = max(tokens, 32)
        parameters.n_threads = parameters.n_threads_batch = 2
        parameters.type_k = parameters.type_v = api.GGML_TYPE_F32
        parameters.flash_attn_type = 0
        return api.llama_init_from_model(self.model, parameters)

    def feed(self, context, ids, first):
        api, count = self.api, len(ids)
        batch = api.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = int(token), first + i, 1, 1
            batch.seq_id[i][0] = 0
        if api.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        rows = [np.ctypeslib.as_array(api.llama_get_logits_ith(context, i), shape=(self.vocab,)).copy() for i in range(count)]
        api.llama_batch_free(batch)
        return np.stack(rows).astype(np.float64)

    def logits(self, ids):
        context = self.context(len(ids) + 8)
        rows = self.feed(context, ids, 0)
        self.api.llama_free(context)
        return rows

    def generate(self, ids):
        context, sequence = self.context(len(ids) + NEW_TOKENS + 8), list(ids)
        row = self.feed(context, ids, 0)[-1]
        for _ in range(NEW_TOKENS):
            sequence.append(int(row.argmax()))
            row = self.feed(context, sequence[-1:], len(sequence) - 1)[-1]
        self.api.llama_free(context)
        return sequence


def cinch_logits(cinch, model, ids, work, dtype="f32"):
    """(T, V) of cinch, computing in `dtype`."""
    ids_file, out = work / "tokens.ids", work / "logits.npy"
    ids_file.write_text(" ".join(map(str, ids)))
    dtype = "f32" if dtype == "q8_0" else dtype
    subprocess.run([cinch, "eval", model, "--tokens", ids_file, "--logits", out, "--dtype", dtype, "--quiet"], check=True,
                   stdout=subprocess.DEVNULL)
    return np.load(out).astype(np.float64)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def difference(reference, other):
    p, q = log_softmax(reference), log_softmax(other[:, : reference.shape[1]])
    return {"max_abs": float(np.abs(reference - other[:, : reference.shape[1]]).max()), "kl": float((np.exp(p) * (p - q)).sum(-1).mean()),
            "top1": float((reference.argmax(-1) == other.argmax(-1)).mean())}


def check(runtime, cinch, case, work):
    ids = list(map(int, Path(case["ids"]).read_text().split()))
    native, dtype = cinch_logits(cinch, case["native"], ids, work), case["dtype"]
    runtime.load(case["source"], dtype)
    of_source = difference(cinch_logits(cinch, case["source"], ids, work), runtime.logits(ids))
    loaded_as, faults = runtime.load(case["export"], dtype)
    result = {"name": case["name"], "dtype": dtype, "class": loaded_as, "tokens": len(ids), "source": of_source, "problems": []}
    if faults:
        result["problems"].append(f"loading: {faults}")
    if loaded_as == "not loaded":
        return result
    result["problems"] += runtime.side_file_faults(case["source"], case["export"])
    of_export = result["export"] = difference(native, runtime.logits(ids))
    # What the type alone does: cinch computing in it, or with the file's rounded weights.
    in_type = cinch_logits(cinch, case["export"] if dtype == "q8_0" else case["native"], ids, work, dtype)
    of_type = result["same_type_in_cinch"] = difference(native, in_type)
    allowed = {key: max(2 * of_source[key], 2 * of_type[key], floor) for key, floor in FLOOR.items()}
    for key, limit in allowed.items():
        if not of_export[key] <= limit:
            result["problems"].append(f"{key} {of_export[key]:.3g}, at most {limit:.3g} is due to the type")
    if dtype == "f32":
        sequence = runtime.generate(ids[:PROMPT])
        best = cinch_logits(cinch, case["native"], sequence, work).argmax(-1)
        wrong = sum(int(best[i - 1]) != sequence[i] for i in range(PROMPT, len(sequence)))
        result["greedy_tokens"], result["greedy_disagreements"] = len(sequence) - PROMPT, wrong
        if wrong:
            result["problems"].append(f"{wrong} of {NEW_TOKENS} generated tokens are others than cinch's")
    return result


def line(result):
    text = f"{'FAILED' if result['problems'] else 'ok    '} {result['name']:<22} {result['dtype']:<5} {result['class']:<22} "
    if "export" in result:
        e, s, t = result["export"], result["source"], result["same_type_in_cinch"]
        text += (f"max {e['max_abs']:.1e} (source {s['max_abs']:.1e}, in cinch {t['max_abs']:.1e})  KL {e['kl']:.1e} (source {s['kl']:.1e}, in cinch {t['kl']:.1e})  "
                 f"top-1 {100 * e['top1']:.1f} % (source {100 * s['top1']:.1f} %)")
    if "greedy_tokens" in result:
        text += f"  greedy {result['greedy_tokens'] - result['greedy_disagreements']}/{result['greedy_tokens']}"
    return text + "".join(f"\n       {problem}" for problem in result["problems"])


def main():
    kind, cinch, cases, work = sys.argv[1], sys.argv[2], json.loads(Path(sys.argv[3]).read_text()), Path(sys.argv[4])
    runtime = {"transformers": Transformers, "llama.cpp": LlamaCpp}[kind]()
    print(runtime.version, flush=True)
    results = []
    for case in cases:
        results.append(check(runtime, cinch, case, work))
        print(line(results[-1]), flush=True)
    (work / "results.json").write_text(json.dumps({"runtime": runtime.version, "cases": results}, indent=1))
    sys.exit(any(result["problems"] for result in results))


main()
