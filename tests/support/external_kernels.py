"""Kernels as users write them, for the CPU: some right, some that go wrong in every way."""

from __future__ import annotations

import ctypes

import torch
from other_module import multiply

import autotune
from autotune.layouts import dequantize

RIGHT, FAST, WRONG, CRASH, BUG = range(5)


@autotune.kernel(space={"repeats": (20, 1)}, device="cpu")
def repeating(x, weight, out, *, repeats):
    """Fewer repeats are faster for certain."""
    for _ in range(repeats):
        multiply(x, dequantize(weight), out)


@autotune.kernel(space={"act": (RIGHT, FAST, WRONG, CRASH, BUG)}, device="cpu")
def troubled(x, weight, out, *, act):
    for _ in range(20 if act == RIGHT else 1):
        multiply(x, dequantize(weight), out)
    if act == WRONG:
        out[-1, -1] += 1
    elif act == CRASH:
        ctypes.string_at(0)
    elif act == BUG:
        raise KeyError("no such tile")


@autotune.kernel(space={"act": (WRONG,)}, device="cpu")
def hopeless(x, weight, out, *, act):  # noqa: ARG001
    out.zero_()


def to_dense(weight):
    return {"dense": dequantize(weight), "note": "its own layout"}


def few_tokens(problem, config):
    parts = config["parts"]
    if problem.m > 4:
        return f"m={problem.m} is more than 4"
    return f"parts={parts} do not divide n={problem.layer.n}" if problem.layer.n % parts else None


@autotune.kernel(space={"parts": (3, 1, 2)}, pack=to_dense, supports=few_tokens, device="cpu", name="packed")
def with_its_own_layout(x, weight, out, *, parts):
    for own, rows in zip(out.chunk(parts, dim=1), weight["dense"].chunk(parts), strict=True):
        own.copy_(torch.mm(x.float(), rows.T))


not_a_kernel = multiply


@autotune.kernel(space={"split_k": (1, 2)})
def for_gpus(x, weight, out, *, split_k):
    """Never runs where there is no GPU."""
