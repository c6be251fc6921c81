"""Split-KV decode attention in Triton, as the serving stacks write it: one program per (request, KV head with a block
of its query heads, split of the tokens), and a second kernel that combines the splits. The same kernels serve
grouped-query attention and absorbed latent attention (one "KV head" whose rows hold latent and rotary key; the values
are the latent part of the same rows), dense and paged.

Letters: B batch, H query heads, K KV heads, S cached tokens, D width of a key (latent: R + Dr), Dv width of a value
(latent: R), P pages.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

PAGE = 64  # tokens


@triton.jit(do_not_specialize=["n_kv_heads", "group"])
def split_kernel(
    # fmt: off
    q, k, v, lengths, table, partial, lse, scale_log2,
    q_batch, q_head, k_page, k_token, k_head, v_page, v_token, v_head, table_batch, n_kv_heads, group,
    MAIN: tl.constexpr, ROPE: tl.constexpr, VALUE: tl.constexpr,
    BLOCK_MAIN: tl.constexpr, BLOCK_ROPE: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, PAGE_TOKENS: tl.constexpr, SHARED: tl.constexpr,
    # fmt: on
):
    """Attention of one split. Grid (B, K * blocks of heads, splits).

    PAGE_TOKENS 0: dense, a page is a request. SHARED: the values are the keys' first MAIN columns. Writes partial
    (B, H, splits, Dv) and the base-2 log-sum-exp (B, H, splits), -inf where a split has no token.
    """
    request = tl.program_id(0)
    head_blocks = tl.cdiv(group, BLOCK_HEADS)
    kv_head = tl.program_id(1) // head_blocks
    split = tl.program_id(2)
    splits = tl.num_programs(2)
    n_heads = n_kv_heads * group

    in_group = (tl.program_id(1) % head_blocks) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    is_head = in_group < group
    head = kv_head * group + in_group
    main = tl.arange(0, BLOCK_MAIN)
    value = tl.arange(0, BLOCK_VALUE)
    is_main = main[None, :] < MAIN
    is_value = value[None, :] < VALUE
    q_rows = q + request * q_batch + head[:, None] * q_head
    q_main = tl.load(q_rows + main[None, :], mask=is_head[:, None] & is_main, other=0.0)
    if ROPE > 0:
        rope = tl.arange(0, BLOCK_ROPE)
        is_rope = rope[None, :] < ROPE
        q_rope = tl.load(q_rows + MAIN + rope[None, :], mask=is_head[:, None] & is_rope, other=0.0)

    length = tl.load(lengths + request)
    per_split = tl.cdiv(tl.cdiv(length, splits), BLOCK_TOKENS) * BLOCK_TOKENS
    begin = split * per_split
    end = tl.minimum(begin + per_split, length)

    largest = tl.full([BLOCK_HEADS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_HEADS], tl.float32)
    accumulator = tl.zeros([BLOCK_HEADS, BLOCK_VALUE], tl.float32)
    for first in range(begin, end, BLOCK_TOKENS):
        step = tl.arange(0, BLOCK_TOKENS)
        is_token = first + step < end
        if PAGE_TOKENS > 0:  # a block never crosses a page: BLOCK_TOKENS divides PAGE_TOKENS
            page = tl.load(table + request * table_batch + first // PAGE_TOKENS).to(tl.int64)
            slot = first % PAGE_TOKENS + step
        else:
            page = request.to(tl.int64)
            slot = first + step
        k_rows = k + page * k_page + kv_head * k_head + slot[:, None] * k_token
        k_main = tl.load(k_rows + main[None, :], mask=is_token[:, None] & is_main, other=0.0)
        score = tl.dot(q_main, tl.trans(k_main))
        if ROPE > 0:
            k_rope = tl.load(k_rows + MAIN + rope[None, :], mask=is_token[:, None] & is_rope, other=0.0)
            score = tl.dot(q_rope, tl.trans(k_rope), score)
        score = tl.where(is_token[None, :], score * scale_log2, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(score, 1))
        shrink = tl.exp2(largest - new_largest)
        weight = tl.exp2(score - new_largest[:, None])
        total = total * shrink + tl.sum(weight, 1)
        if SHARED:
            values = k_main
        else:
            v_rows = v + page * v_page + kv_head * v_head + slot[:, None] * v_token
            values = tl.load(v_rows + value[None, :], mask=is_token[:, None] & is_value, other=0.0)
        accumulator = tl.dot(weight.to(values.dtype), values, accumulator * shrink[:, None])
        largest = new_largest

    row = (request * n_heads + head) * splits + split
    if begin < end:
        part = partial + row[:, None] * VALUE + value[None, :]
        tl.store(part, accumulator / total[:, None], mask=is_head[:, None] & is_value)
        tl.store(lse + row, largest + tl.log2(total), mask=is_head)
    else:
        tl.store(lse + row, tl.full([BLOCK_HEADS], float("-inf"), tl.float32), mask=is_head)


@triton.jit(do_not_specialize=["splits"])
def combine_kernel(
    # fmt: off
    partial, lse, out, splits, VALUE: tl.constexpr, BLOCK_VALUE: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
    # fmt: on
):
    """Weighs the splits by their log-sum-exps. Grid (B * H, blocks of the value's columns).

    out: (B, H, Dv); zeros where nothing was attended.
    """
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_SPLITS)
    value = tl.program_id(1) * BLOCK_VALUE + tl.arange(0, BLOCK_VALUE)
    logs = tl.load(lse + row * splits + split, mask=split < splits, other=float("-inf"))
    used = logs > float("-inf")
    weight = tl.where(used, tl.exp2(logs - tl.max(logs, 0)), 0.0)
    total = tl.sum(weight, 0)
    weight = tl.where(total > 0, weight / total, 0.0)
    # Splits without tokens have left their part of `partial` unwritten.
    part = partial + (row * splits + split[:, None]) * VALUE + value[None, :]
    parts = tl.load(part, mask=used[:, None] & (value[None, :] < VALUE), other=0.0)
    combined = tl.sum(parts * weight[:, None], 0).to(out.dtype.element_ty)
    tl.store(out + row * VALUE + value, combined, mask=value < VALUE)


@dataclass(frozen=True)
class Blocks:
    """Tile of one program: query heads (rows are padded to it), tokens; warps; cache tiles in shared memory at once."""

    heads: int
    tokens: int
    warps: int
    tiles: int

    def __str__(self):
        return f"{self.heads}x{self.tokens}, {self.warps} warps, {self.tiles} tiles"


SERVING_HEADS = 16


def serving_blocks(main, _group):
    """The serving stacks' tile: 16 heads whatever their number; a cache row is read once per 16, again from L2."""
    return Blocks(SERVING_HEADS, 64 if main <= 128 else 32, 4, 3)


def wide_blocks(main, group):
    """32 or 64 heads in one tile: a cache row is read once per 64."""
    heads = 32 if group <= 32 else 64
    return Blocks(heads, 64, 4, 3) if main <= 128 else Blocks(heads, 32, 8, 3)


def choose_splits(programs, slots, context):
    """Splits of the tokens: the fewest whose waves over `slots` resident programs are at least 85 % as full as the
    best's (FlashAttention-3's rule, here also where the programs alone fill the device: a short last wave costs as
    much then), with no split under 128 tokens and at most 64 splits.
    """
    most = max(1, min(64, context // 128, slots))
    fullness = [programs * s / slots / math.ceil(programs * s / slots) for s in range(1, most + 1)]
    return next(s for s in range(1, most + 1) if fullness[s - 1] >= 0.85 * max(fullness))


def resident_programs(compiled, warps):
    """Programs of a compiled kernel that one multiprocessor of sm_90 holds at a time: by shared memory (228 KiB, 1 KiB
    of each program's is reserved), registers (65536) and threads (2048).
    """
    compiled._init_handles()
    threads = 32 * warps
    by_registers = 65536 // (max(compiled.n_regs, 1) * threads)
    return max(1, min(233472 // (compiled.metadata.shared + 1024), by_registers, 2048 // threads))


def padded(size):
    """Triton's blocks are powers of two, products of tensor cores at least 16 wide."""
    return max(16, triton.next_power_of_2(size))


class SplitDecode:
    """Decode of one set of inputs, with its buffers: calling it launches both kernels and returns out (B, H, Dv).

    q: (B, H, D). Dense k: (B, K, S, D), v: (B, K, S, Dv); paged k: (P, 64, K, D), v: (P, 64, K, Dv) with table (B,
    pages of the longest request) int32. v None: latent attention, the values are the first D - rope_dim columns of k.
    lengths: (B) int32, the longest is `context`. Raises ValueError for blocks that do not divide a page.
    """

    def __init__(self, q, k, v, lengths, table, scale, rope_dim, blocks, context, splits=None):
        batch, n_heads, width = q.shape
        page, token, head = (0, 2, 1) if table is None else (0, 1, 2)
        n_kv_heads = k.shape[head]
        group = n_heads // n_kv_heads
        main = width - rope_dim
        values = k if v is None else v
        value = main if v is None else v.shape[-1]
        if table is not None and PAGE % blocks.tokens != 0:
            raise ValueError(f"blocks of {blocks.tokens} tokens do not divide a page of {PAGE}")
        self.blocks = blocks
        self.programs = n_kv_heads * -(-group // blocks.heads)
        self.constants = {
            "MAIN": main,
            "ROPE": rope_dim,
            "VALUE": value,
            "BLOCK_MAIN": padded(main),
            "BLOCK_ROPE": padded(rope_dim),
            "BLOCK_VALUE": padded(value),
            "BLOCK_HEADS": blocks.heads,
            "BLOCK_TOKENS": blocks.tokens,
            "PAGE_TOKENS": 0 if table is None else PAGE,
            "SHARED": v is None,
            "num_warps": blocks.warps,
            # Triton counts the load of a page's number as a stage too: twice the stages hold as many tiles.
            "num_stages": blocks.tiles if table is None else 2 * blocks.tiles - 1,
        }
        self.inputs = [q, k, values, lengths, lengths if table is None else table]
        of_rows = [rows.stride(axis) for rows in (k, values) for axis in (page, token, head)]
        strides = [q.stride(0), q.stride(1), *of_rows, 0 if table is None else table.stride(0)]
        self.sizes = [scale / math.log(2), *strides, n_kv_heads, group]
        if splits is None:
            multiprocessors = torch.cuda.get_device_properties(q.device).multi_processor_count
            slots = multiprocessors * resident_programs(self.warm_up(), blocks.warps)
            splits = choose_splits(batch * self.programs, slots, context)
        self.splits = splits
        self.partial = torch.empty(batch, n_heads, splits, value, dtype=torch.float32, device=q.device)
        self.lse = torch.empty(batch, n_heads, splits, dtype=torch.float32, device=q.device)
        self.out = torch.empty(batch, n_heads, value, dtype=q.dtype, device=q.device)
        block_splits = next(size for size in (4, 16, 64) if splits <= size)
        self.combine_constants = {"VALUE": value, "BLOCK_VALUE": 64, "BLOCK_SPLITS": block_splits, "num_warps": 4}

    def warm_up(self):
        """Compiles the split kernel, or takes it from Triton's cache, without a launch."""
        arguments = [tensor.dtype for tensor in self.inputs] + [torch.float32, torch.float32] + self.sizes
        return split_kernel.warmup(*arguments, **self.constants, grid=(1,))

    def __call__(self):
        batch, n_heads, value = self.out.shape
        arguments = [*self.inputs, self.partial, self.lse, *self.sizes]
        split_kernel[(batch, self.programs, self.splits)](*arguments, **self.constants)
        grid = (batch * n_heads, -(-value // 64))
        combine_kernel[grid](self.partial, self.lse, self.out, self.splits, **self.combine_constants)
        return self.out
