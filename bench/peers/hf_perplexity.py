#!/usr/bin/env python3
"""Perplexity of a Hugging Face folder with stock transformers, by the protocol ppl-gptq-W: the peer that eval's throughput is measured against.

    hf_perplexity.py FOLDER TEXT --window 512 --windows 16 [--threads 2]

Prints one JSON object: perplexity, tokens, seconds of the forward passes, tokens per second.
"""
import argparse
import json
import os
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder")
parser.add_argument("text")
parser.add_argument("--window", type=int, default=512)
parser.add_argument("--windows", type=int, default=16)
parser.add_argument("--threads", type=int, default=2)
args = parser.parse_args()
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(args.threads)
tokenizer = AutoTokenizer.from_pretrained(args.folder)
model = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32, attn_implementation="sdpa").eval()
with open(args.text, encoding="utf-8") as file:
    ids = tokenizer(file.read(), add_special_tokens=False, return_tensors="pt").input_ids[0]
ids = ids[: args.window * args.windows].view(-1, args.window)
losses = []
with torch.inference_mode():
    model(ids[:1])  # warm-up
    start = time.perf_counter()
    for window in ids:
        logits = model(window[None]).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).item())
    seconds = time.perf_counter() - start
print(json.dumps({"perplexity": float(torch.tensor(losses, dtype=torch.float64).mean().exp()), "tokens": ids.numel(), "seconds": seconds, "tokens_per_second": ids.numel() / seconds}))
