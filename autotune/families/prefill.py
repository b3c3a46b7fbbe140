"""Family `prefill`: many tokens on sm_90 by wgmma, one launch for all tiles of up to 256 tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune import _C
from autotune.families.estimates import clusters_at_once
from autotune.families.gemm import (
    SM90_BLOCK_BYTES,
    SM90_SHARED_BYTES,
    ceil_div,
    current_stream,
    layer_defines,
    pointer,
    reject_layer,
)
from autotune.families.protocol import Launch
from autotune.families.workspace import COUNTER_BYTES
from autotune.jit.sources import source_hash
from autotune.jit.unit import Unit
from autotune.values.config import Config

if TYPE_CHECKING:
    import torch

    from autotune.layouts import PackedWeight
    from autotune.values.device import Device
    from autotune.values.layer import Layer, Problem

_SOURCE = "prefill/prefill.cu"
_FEWEST_TOKENS = 65

_TUNABLES = ("tile_m", "warpgroups", "fragments", "cluster", "split_k", "stream_k")
_SHAPES = {(2, 1): 256, (2, 2): 128, (3, 1): 160}
"""By warpgroups and fragments the most tokens of a tile whose sums fit the registers."""
_WAYS = ((2, 1, 1), (2, 1, 0), (1, 1, 1), (1, 1, 0), (1, 2, 0), (1, 3, 0), (1, 4, 0))
"""How blocks share work: cluster, split_k and stream_k."""
_TILES = ((2, 1, 256), (2, 1, 128), (2, 2, 128), (3, 1, 128))
"""Worth timing: warpgroups, fragments and the most tokens of a tile."""
_MOST_STAGES = 8
_SHARE = {128: 2}
"""Units of 64 columns that belong together, by group size; else one."""

# What a call takes, in microseconds: itself; a block for a unit of 64 columns, for each 64 rows of it, and
# for each of their tokens; for the results of 64 rows and a token; for sums that go to the other blocks of a
# cluster; for those of a tile that is shared, to and from memory, and for each block beyond the second that
# has a share. When all multiprocessors multiply, the clock falls. Least squares over 1,375 trials of a sweep
# of the layers of Llama-7B and Llama-3-8B on an H200, 3.5 % off (root mean square).
_CALL_US = 1.87
_UNIT_US = 0.049
_ROWS_US = 0.0315
_TOKEN_US = 0.000915
_LEAST_TOKENS = 100  # fewer take as long
_RESULT_US = 0.0035
_SPLIT_US = 1.12
_SENT_US = 0.016
_SHARED_US = 5.2
_PASSED_US = 0.0086
_MORE_PASSED_US = 0.0020
_HOT = 0.31
_WORTH_TIMING = 1.15


@dataclass(frozen=True, slots=True)
class _Geometry:
    """Launch geometry of a config for a layer; mirrors the constants of csrc/cuda/prefill/block.cuh."""

    config: Config
    layer: Layer

    @property
    def threads(self) -> int:
        return self.config["warpgroups"] * 128 + 128

    @property
    def row_blocks(self) -> int:
        """Of 64 rows, of a block."""
        return self.config["warpgroups"] * self.config["fragments"]

    @property
    def of_cluster(self) -> int:
        """Blocks of a cluster."""
        return self.config["cluster"] * self.config["split_k"]

    @property
    def shares(self) -> int:
        """Parts of k that a tile's columns can be shared out by."""
        return ceil_div(ceil_div(self.layer.k, 64), _SHARE.get(self.layer.group_size, 1))

    @property
    def stage_bytes(self) -> int:
        return self.config["tile_m"] * 128 + self.row_blocks * 2048

    @property
    def stages(self) -> int:
        """As many as fit beside the results, for which each warpgroup has two buffers of 4096 bytes."""
        # The kernel rounds its base up to 1024 bytes, and has two barriers per stage and two more.
        beside = 1024 + self.config["warpgroups"] * 8192 + 16 * (_MOST_STAGES + 1)
        return min(_MOST_STAGES, (SM90_SHARED_BYTES - SM90_BLOCK_BYTES - beside) // self.stage_bytes)

    @property
    def shared_bytes(self) -> int:
        return 1024 + self.stages * (self.stage_bytes + 16) + self.config["warpgroups"] * 8192 + 16

    def tiles(self, m: int) -> int:
        """Of all blocks of a cluster that share x."""
        rows = ceil_div(ceil_div(self.layer.n, 64), self.row_blocks * self.config["cluster"])
        return rows * ceil_div(m, self.config["tile_m"])

    def workers(self, m: int, device: Device) -> int:
        """Clusters that run at once; with split_k as many as there are tiles."""
        if self.config["split_k"] > 1:
            return self.tiles(m)
        most = device.cores // self.config["cluster"]
        return most if self.config["stream_k"] else min(most, self.tiles(m))

    def workspace_bytes(self, device: Device) -> int:
        """For the sums of one tile of each block."""
        if not self.config["stream_k"]:
            return 0
        return COUNTER_BYTES + device.cores * self.row_blocks * 64 * self.config["tile_m"] * 4


class _PrefillPlan:
    """A loaded kernel and its launch geometry for one layer."""

    def __init__(self, config: Config, layer: Layer, device: Device, cubin: bytes) -> None:
        self._geometry = geometry = _Geometry(config, layer)
        boxes = (layer.k, config["tile_m"] // config["cluster"], layer.dtype == "bf16")
        self._function = _C.CudaFunction(cubin, "int4_prefill", device.index, boxes)
        self._workspace_bytes = geometry.workspace_bytes(device)
        self._launches: dict[int, Launch] = {}
        self._layer = layer
        self._device = device

    def workspace_bytes(self, m: int) -> int:  # noqa: ARG002
        return self._workspace_bytes

    def run(
        self,
        x: torch.Tensor,
        weight: PackedWeight,
        bias: torch.Tensor | None,
        out: torch.Tensor,
        workspace: torch.Tensor | None,
    ) -> None:
        layer, m = self._layer, x.shape[0]
        launch = self._launches.get(m) or self._launch(m)
        counters = pointer(workspace)
        self._function.launch(
            launch.grid,
            launch.threads,
            launch.shared_bytes,
            current_stream(self._device),
            (
                x.data_ptr(),
                m,
                weight.qweight.data_ptr(),
                weight.scales.data_ptr(),
                pointer(weight.zeros),
                pointer(bias),
                out.data_ptr(),
                counters,
                counters + COUNTER_BYTES,
                m,
                layer.n,
                layer.k,
            ),
            launch.programmatic,
        )

    def _launch(self, m: int) -> Launch:
        """Kept, because a call has no time for it."""
        return self._launches.setdefault(m, _launch(self._geometry, m, self._device))


class PrefillFamily:
    """Tunables: `tile_m` tokens of a block's tile; `warpgroups` that multiply, with `fragments` of 64 rows
    each; `cluster` blocks that fetch x for each other; `split_k` slices of k, the blocks of a cluster;
    `stream_k` 1: the tiles that would be left for a last wave are shared by all.
    """

    name = "prefill"
    kind = "cuda"

    def source_hash(self) -> str:
        return source_hash(_SOURCE)

    def reject(self, config: Config, problem: Problem, device: Device) -> str | None:
        if tuple(config) != _TUNABLES:
            return f"its tunables are {', '.join(_TUNABLES)}"
        if device.arch != "sm_90":
            return f"it needs wgmma of sm_90, not {device.arch}"
        return reject_layer(problem.layer) or _reject_shape(config) or _reject_ways(config, problem)

    def space(self, problem: Problem, device: Device) -> list[Config]:
        estimates = self._estimates(problem, device)
        most_us = _WORTH_TIMING * min(estimates.values(), default=0.0)
        return [config for config, us in estimates.items() if us <= most_us]

    def default(self, problem: Problem, device: Device) -> Config | None:
        estimates = self._estimates(problem, device)
        return min(estimates, key=estimates.__getitem__, default=None)

    def estimate(self, config: Config, problem: Problem, device: Device) -> float:
        return _estimate(_Geometry(config, problem.layer), problem.m, device)

    def _estimates(self, problem: Problem, device: Device) -> dict[Config, float]:
        """What each valid config for the problem takes, simplest first."""
        if problem.m < _FEWEST_TOKENS:
            return {}  # weights are what a call waits for; `wgmma` has less to do beside
        tiles = dict.fromkeys((_fitting(problem.m, most), *shape) for *shape, most in _TILES)
        configs = [
            Config(self.name, tuple(zip(_TUNABLES, (*tile, *way), strict=True)))
            for tile in tiles
            for way in _WAYS
        ]
        return {
            config: self.estimate(config, problem, device)
            for config in configs
            if self.reject(config, problem, device) is None and _differs(config, problem, device)
        }

    def unit(self, config: Config, layer: Layer, device: Device) -> Unit:
        tunables = tuple((name.upper(), value) for name, value in config.values)
        stages = ("STAGES", _Geometry(config, layer).stages)
        return Unit(_SOURCE, (*tunables, stages, *layer_defines(layer)), f"{device.arch}a")

    def launches(self, config: Config, problem: Problem, device: Device) -> tuple[Launch, ...]:
        return (_launch(_Geometry(config, problem.layer), problem.m, device),)

    def plan(self, config: Config, layer: Layer, device: Device, cubin: bytes | None) -> _PrefillPlan:
        assert cubin is not None
        return _PrefillPlan(config, layer, device, cubin)


def _launch(geometry: _Geometry, m: int, device: Device) -> Launch:
    blocks = geometry.workers(m, device) * geometry.of_cluster
    box_rows = geometry.config["tile_m"] // geometry.config["cluster"]
    return Launch((blocks, 1, 1), geometry.threads, geometry.shared_bytes, True, box_rows=box_rows)


def _fitting(m: int, most: int) -> int:
    """The smallest tile of which as few hold m tokens as of tiles of `most`."""
    return ceil_div(ceil_div(m, ceil_div(m, most)), 16) * 16


def _reject_shape(config: Config) -> str | None:
    tile_m, shape = config["tile_m"], (config["warpgroups"], config["fragments"])
    if shape not in _SHAPES:
        return f"warpgroups and fragments are one of {', '.join(map(str, _SHAPES))}"
    if tile_m % 16 or not 16 <= tile_m <= _SHAPES[shape]:
        return f"tile_m={tile_m} is not a multiple of 16 up to {_SHAPES[shape]}"
    return None


def _reject_ways(config: Config, problem: Problem) -> str | None:
    if (config["cluster"], config["split_k"], config["stream_k"]) not in _WAYS:
        return f"cluster, split_k and stream_k are one of {', '.join(map(str, _WAYS))}"
    if _Geometry(config, problem.layer).shares < config["split_k"]:
        return f"k={problem.layer.k} has fewer groups than {config['split_k']} slices"
    return None


def _differs(config: Config, problem: Problem, device: Device) -> bool:
    """Whether stream_k, if set, shares any tile."""
    workers = device.cores // config["cluster"]
    return not config["stream_k"] or _Geometry(config, problem.layer).tiles(problem.m) % workers != 0


def _estimate(geometry: _Geometry, m: int, device: Device) -> float:
    config, tiles, row_blocks = geometry.config, geometry.tiles(m), geometry.row_blocks
    split_k, tile_m = config["split_k"], config["tile_m"]
    workers = clusters_at_once(geometry.of_cluster, 1, device.cores)
    unit_us = _UNIT_US + row_blocks * (_ROWS_US + _TOKEN_US * max(tile_m, _LEAST_TOKENS))
    tile_us = geometry.layer.k / 64 / split_k * unit_us
    waves = ceil_div(tiles, workers)
    multiplied_us = tiles / workers * tile_us
    if config["stream_k"]:
        others = max(0, ceil_div(workers, tiles) - 2)
        passed_us = row_blocks * tile_m * (_PASSED_US + others * _MORE_PASSED_US)
        shared_us = multiplied_us + _SHARED_US + passed_us
    else:
        sent_us = 0.0 if split_k == 1 else _SPLIT_US + _SENT_US * row_blocks * tile_m * (1 - 1 / split_k)
        shared_us = waves * (tile_us + sent_us)
    all_us = _CALL_US + shared_us + waves * _RESULT_US * row_blocks * tile_m / split_k
    return all_us * (1 + _HOT * max(0.0, multiplied_us / all_us - 0.5))


FAMILY = PrefillFamily()
