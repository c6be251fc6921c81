#!/usr/bin/env python3
"""An uptraining as one writes it with transformers and PyTorch: the peer that `cinch uptrain`'s speed is measured against.

    uptrain_loop.py STUDENT TEACHER IDS --steps 4 --window 512 --batch 4 --micro-batch 2 [--dtype f32|bf16] [--trainable attention|all] [--recompute] [--threads 2]

Hugging Face folders; IDS holds token ids, one a line. Student and frozen teacher run side by side, the loss is the KL of full logits in fp32, AdamW is the fused one, bf16 is autocast over fp32 weights. Prints one JSON object: tokens per second (of all steps but the first, which warms up), losses, peak memory of the process.
"""
import argparse
import json
import os
import resource
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("student")
parser.add_argument("teacher")
parser.add_argument("ids")
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--window", type=int, default=512)
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--micro-batch", type=int, default=2)
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
parser.add_argument("--trainable", choices=["attention", "all"], default="attention")
parser.add_argument("--lr", type=float, default=5e-5)
parser.add_argument("--clip", type=float, default=1.0)
parser.add_argument("--recompute", action="store_true")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--device", default="cpu")
args = parser.parse_args()
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

torch.set_num_threads(args.threads)
device = torch.device(args.device)


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").to(device)


compute = torch.bfloat16 if args.dtype == "bf16" else torch.float32
student = load(args.student, torch.float32).train()
teacher = load(args.teacher, compute).eval().requires_grad_(False)
for name, parameter in student.named_parameters():
    parameter.requires_grad_(args.trainable == "all" or ".self_attn." in name)
if args.recompute:
    student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
student.config.use_cache = teacher.config.use_cache = False
trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
matrices = [parameter for parameter in trained if parameter.dim() > 1]
vectors = [parameter for parameter in trained if parameter.dim() <= 1]
groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=args.lr, betas=(0.9, 0.95), fused=True)

with open(args.ids, encoding="utf-8") as file:
    ids = torch.tensor([int(line) for line in file], dtype=torch.long)
ids = ids[: len(ids) // args.window * args.window].view(-1, args.window).to(device)
losses, seconds, sample = [], [], 0
for step in range(args.steps):
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for first in range(0, args.batch, args.micro_batch):
        batch = ids[torch.arange(sample, sample + args.micro_batch) % len(ids)]
        sample += args.micro_batch
        with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bf16"):
            with torch.no_grad():
                target = teacher(batch).logits.flatten(0, 1)
            logits = student(batch).logits.flatten(0, 1)
        loss = F.kl_div(F.log_softmax(logits.float(), -1), F.log_softmax(target.float(), -1), reduction="sum", log_target=True)
        loss = loss / (args.batch * args.window)
        loss.backward()
        total += loss.item()
    if args.clip > 0:
        torch.nn.utils.clip_grad_norm_(trained, args.clip)
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    losses.append(total)
    seconds.append(time.perf_counter() - start)
timed = seconds[1:] or seconds
print(
    json.dumps(
        {
            "tokens_per_second": args.batch * args.window * len(timed) / sum(timed),
            "losses": losses,
            "trained_parameters": sum(parameter.numel() for parameter in trained),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
    )
)
