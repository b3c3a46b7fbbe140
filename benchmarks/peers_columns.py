"""Who takes part in `peers.py`: autotune's configs, torch's matmul, and other people's int4 kernels.

Everyone gets the same weights, in a layout of his own, and runs what his package chooses by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from autotune.bench.compare import Matmul, dense_operands
from autotune.bench.operands import Activation, Operands
from autotune.families import registry
from autotune.families.protocol import Plan
from autotune.families.workspace import workspace
from autotune.formats import awq_gemm
from autotune.jit import compiler
from autotune.jit.building import build_all
from autotune.layouts import QuantizedWeight, reference_matmul
from autotune.records.lookup import Lookup
from autotune.values.config import Config
from autotune.values.errors import AutotuneError
from autotune.values.layer import Layer, Problem

_ROTATED_BYTES = 200e6
_LARGEST_ERROR = 0.02
_CHECKED_ROWS = 512
LARGE_M = 256

_Made = TypeVar("_Made")


class Foreign:
    """Somebody else's linear in the place of a plan: what it returns is its own, so `out` stays as it is."""

    def __init__(self, call: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        self._call = call

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        return 0

    def run(
        self,
        x: torch.Tensor,
        weight: Any,
        bias: None,  # noqa: ARG002
        out: torch.Tensor,  # noqa: ARG002
        workspace: None,  # noqa: ARG002
    ) -> torch.Tensor:
        return self._call(weight, x)


@dataclass(frozen=True)
class Contestant:
    """A way to do one layer: a plan for a number of tokens, and the copies of the weight that it reads.

    It computes in the dtype of the weight's scales, or in another.
    """

    name: str
    plan: Callable[[int], Any]
    copies: Sequence[Any]
    weight: QuantizedWeight
    its_own: torch.dtype | None = None

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.its_own or self.weight.scales.dtype

    def activations(self, shared: Sequence[Activation]) -> list[Activation]:
        """The same in the dtype that it computes in."""
        return [Activation(each.x.to(self.dtype), each.out.to(self.dtype)) for each in shared]


def configs_of(layer: Layer, m: int, lookup: Lookup) -> tuple[Config, Config]:
    """What a model runs for m tokens, and the default."""
    stored = lookup.answer(Problem(layer, m)).config
    return stored, registry.default_config(Problem(layer, m), lookup.device)


def compile_ahead(layer: Layer, ms: Sequence[int], lookup: Lookup) -> None:
    """Build the kernels of all these numbers of tokens in parallel; later plans find them in the cache."""
    configs = {config for m in ms for config in configs_of(layer, m, lookup)}
    units = (registry.family_of(config).unit(config, layer, lookup.device) for config in configs)
    build_all(unit for unit in units if unit is not None and lookup.binary(unit.key) is None)


def tuned_and_default(operands: Operands, lookup: Lookup) -> Iterator[Contestant]:
    """autotune: what look-up answers, and the default config."""
    layer, device = operands.layer, operands.device

    def plan_of(config: Config) -> Plan:
        family = registry.family_of(config)
        unit = family.unit(config, layer, device)
        cubin = None if unit is None else lookup.binary(unit.key) or compiler.build(unit)
        return family.plan(config, layer, device, cubin)

    for place, name in enumerate(("stored", "default")):
        yield Contestant(
            name,
            lambda m, place=place: plan_of(configs_of(layer, m, lookup)[place]),
            operands.copies,
            operands.weight,
        )


def matmul(operands: Operands) -> Contestant:
    """torch's matmul on the dequantised weight."""
    weight = operands.weight
    return Contestant(
        "matmul", lambda _: Matmul(), dense_operands(operands, weight.scales.dtype).copies, weight
    )


def torch_int4(operands: Operands) -> Contestant:
    """torch._weight_int4pack_mm: q - 8 times a scale, plus an offset; both bf16."""
    weight, layer = operands.weight, operands.layer
    pairs = weight.q[:, ::2] << 4 | weight.q[:, 1::2]
    zeros = 8.0 if weight.zeros is None else weight.zeros.float()
    scales = weight.scales.float()
    offsets = torch.stack((scales, (8 - zeros) * scales), dim=-1).to(torch.bfloat16).contiguous()

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        return torch._convert_weight_to_int4pack(pairs, 8), offsets.clone()

    def call(copy: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch._weight_int4pack_mm(x, copy[0], layer.group_size, copy[1])

    return Contestant("torch_int4", lambda _: Foreign(call), _copies(layer, make), weight, torch.bfloat16)


def humming(operands: Operands) -> Contestant:
    """Humming's layer with an AWQ weight; needs humming-kernels."""
    from humming.layer import HummingLayer

    layer, weight = operands.layer, operands.weight
    tensors = dict(zip(("qweight", "qzeros", "scales"), awq_gemm.from_quantized(weight), strict=True))
    dtype = weight.scales.dtype

    def make() -> Any:
        scheme = {"quant_method": "awq", "bits": 4, "group_size": layer.group_size, "zero_point": True}
        made = HummingLayer(shape_n=layer.n, shape_k=layer.k, weight_config=scheme, torch_dtype=dtype).cuda()
        made.load_from_tensors(tensors)
        made.transform()
        return made

    return Contestant("humming", lambda _: Foreign(lambda made, x: made(x)), _copies(layer, make), weight)


def gemlite(operands: Operands) -> Contestant:
    """GemLite's linear; needs gemlite."""
    from gemlite.helper import A16W4_HQQ_INT

    weight: QuantizedWeight = operands.weight
    dtype = weight.scales.dtype
    zeros = torch.full_like(weight.scales, 8) if weight.zeros is None else weight.zeros.to(dtype)

    def make() -> Any:
        maker = A16W4_HQQ_INT(device=str(weight.q.device), dtype=dtype)
        return maker.from_weights(weight.q, weight.scales.T.reshape(-1, 1), zeros.T.reshape(-1, 1))

    made = _copies(operands.layer, make)
    return Contestant("gemlite", lambda _: Foreign(lambda each, x: each(x)), made, weight)


def vllm(operands: Operands) -> Contestant:
    """What vLLM picks, by the kernel's name: `machete` on sm_90, `marlin` elsewhere; needs vllm."""
    from autotune.serving.vllm.peer import vllm_peer

    peer = vllm_peer(operands)
    name = peer.name.removeprefix("vllm:").removesuffix("LinearKernel").lower()
    plan = Foreign(lambda loaded, x: loaded.apply(loaded.layer, x))
    return Contestant(name, lambda _: plan, peer.operands.copies, operands.weight)


FOREIGN = {each.__name__: each for each in (humming, vllm, torch_int4, gemlite)}


def entered(operands: Operands, lookup: Lookup, peers: Sequence[str]) -> list[Contestant]:
    """All who take part; why a peer does not is a line on stderr."""
    found = [*tuned_and_default(operands, lookup), matmul(operands)]
    for name in peers:
        try:
            found.append(FOREIGN[name](operands))
        except Exception as error:  # code of others raises what it likes
            print(f"{name} takes no part: {_in_a_line(error)}", file=sys.stderr)
    return found


def ready(
    m: int,
    operands: Operands,
    contestants: Sequence[Contestant],
    make: Callable[[Any, Sequence[Any], Sequence[Activation]], _Made],
) -> dict[str, _Made]:
    """What `make` makes of the plan, copies and activations of each contestant that is right, by its name.

    Why another is not is a line on stderr.
    """
    shared = operands.activations(m)
    rows = torch.linspace(0, m - 1, min(m, _CHECKED_ROWS), device=shared[0].x.device).long()
    found = {}
    for contestant in contestants:
        own = contestant.activations(shared)
        try:
            plan = contestant.plan(m)
            expected = reference_matmul(contestant.weight, own[0].x[rows])
            for copy in (contestant.copies[0], contestant.copies[-1]):
                _check(plan, copy, own[0], rows, expected)
            found[contestant.name] = make(plan, _rotated(contestant.copies, m), own)
        except Exception as error:  # as above
            print(f"{contestant.name} of m={m}, {operands.layer}: {_in_a_line(error)}", file=sys.stderr)
    return found


def _rotated(copies: Sequence[Any], m: int) -> Sequence[Any]:
    """All copies; half of them for many tokens, whose x and out empty the cache too."""
    return copies[: max(2, -(-len(copies) // 2))] if m > LARGE_M else copies


def _check(plan: Any, copy: Any, each: Activation, rows: torch.Tensor, expected: torch.Tensor) -> None:
    scratch = workspace(each.x.device, plan.workspace_bytes(len(each.x)))
    returned = plan.run(each.x, copy, None, each.out.fill_(torch.nan), scratch)
    result = each.out if returned is None else returned
    error = (result[rows].float() - expected).norm() / expected.norm()
    if not error <= _LARGEST_ERROR or not result.isfinite().all():
        raise AutotuneError(f"its result is wrong: relative error {error:.3g}")


def _copies(layer: Layer, make: Callable[[], Any]) -> list[Any]:
    return [make() for _ in range(1 + round(_ROTATED_BYTES / (layer.n * layer.k / 2)))]


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
