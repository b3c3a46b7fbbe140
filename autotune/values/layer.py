"""What is tuned: a layer (known at model load) and a problem (a layer and a number of tokens)."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from typing import Any

from autotune.values.counts import counted
from autotune.values.errors import LayerError
from autotune.values.scheme import GROUP_SIZES, Scheme

BUCKETS = (
    *(1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    *(288, 320, 352, 384, 416, 448, 480, 512),
    *(576, 624, 640, 672, 704, 720, 768, 832, 896, 960, 1024),
    *(1088, 1152, 1280, 1344, 1440, 1536, 1680, 1792, 1920, 2048, 2304, 2560, 2816, 3072, 3328, 3584, 4096),
)
"""The numbers of tokens that are tuned: powers of two, the coarse buckets, and finer ones between them.

Fewer would answer badly between them. benchmarks/between.py measures how badly these do.
"""
COARSE = tuple(bucket for bucket in BUCKETS if bucket & (bucket - 1) == 0)
"""Those that always have an answer; a finer bucket has one where it has a record."""
_ON_CPU = tuple(bucket for bucket in BUCKETS if bucket <= 32)
"""Beyond these a CPU's time for one call is seconds, and no one decodes or prefills there."""


def buckets_on(kind: str) -> tuple[int, ...]:
    """The buckets that are worth tuning on a kind of device, "cuda" or "cpu"."""
    return BUCKETS if kind == "cuda" else _ON_CPU


def bucket_of(m: int) -> int:
    """The number of tokens that is tuned for m: the smallest bucket >= m, the largest above that."""
    return buckets_for(m)[0]


def buckets_for(m: int) -> tuple[int, ...]:
    """The buckets from `bucket_of(m)` to a coarse one: the first of them that has an answer answers m."""
    if m < 1:
        raise LayerError(f"m={m} is not a number of tokens; use m >= 1")
    m = min(m, BUCKETS[-1])
    coarse = COARSE[bisect_left(COARSE, m)]
    return BUCKETS[bisect_left(BUCKETS, m) : BUCKETS.index(coarse) + 1]


_DEFAULT = Scheme()


@dataclass(frozen=True, slots=True, order=True, init=False)
class Layer:
    """A quantized linear: out[m, n] = x[m, k] @ dequant(w[n, k]).T, stored as its scheme says.

    `group_size`, `dtype` and `zero_point` say what is not as in the scheme, int4-g128-zp-fp16 where none is
    given: `Layer(n=4096, k=4096, group_size=64)`. A group of all k has the size -1 in the scheme.

    Raises:
        LayerError: n or k is not a positive multiple of 8, the group size does not divide k, or there is no
            such scheme.
    """

    n: int
    k: int
    scheme: Scheme = field(hash=False)  # layers are looked up often, and few differ in nothing else
    weight_bytes: int = field(init=False, repr=False, compare=False)
    """Bytes of nibbles, scales in the layer's dtype and packed zeros, unpadded."""

    def __init__(
        self,
        n: int,
        k: int,
        scheme: Scheme = _DEFAULT,
        *,
        group_size: int | None = None,
        dtype: str | None = None,
        zero_point: bool | None = None,
    ) -> None:
        if not isinstance(scheme, Scheme):
            raise LayerError(f"scheme={scheme!r} is not a Scheme; give it, or name group_size= and others")
        for name, value in (("n", n), ("k", k)):
            if value < 8 or value % 8:
                raise LayerError(f"{name}={value} is not a positive multiple of 8")
        told = {"group_size": -1 if group_size == k else group_size, "dtype": dtype, "zeros": zero_point}
        changes: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
        scheme = replace(scheme, **changes) if changes else scheme
        if k % scheme.group_size:
            raise LayerError(f"k={k} is not a multiple of group_size={scheme.group_size}")
        if scheme.group_size == k:
            scheme = replace(scheme, group_size=-1)
        object.__setattr__(self, "n", n)
        object.__setattr__(self, "k", k)
        object.__setattr__(self, "scheme", scheme)
        # Estimates ask for it thousands of times.
        per_group = (4.0 if self.dtype == "fp32" else 2.0) + (0.5 if self.zero_point else 0.0)
        object.__setattr__(self, "weight_bytes", int(n * (k / 2 + self.groups * per_group)))

    @property
    def group_size(self) -> int:
        """Weights along k that share a scale, as a number."""
        size = self.scheme.group_size
        return self.k if size == -1 else size

    @property
    def dtype(self) -> str:
        """Of x, the scales and out."""
        return self.scheme.dtype

    @property
    def zero_point(self) -> bool:
        """Whether groups have zeros; without, every zero is 8."""
        return self.scheme.zeros

    @property
    def groups(self) -> int:
        """Number of groups along k."""
        return self.k // self.group_size

    def __str__(self) -> str:
        if self.scheme.weight != _DEFAULT.weight:
            return f"n={self.n},k={self.k},scheme={self.scheme}"
        zeros = "" if self.zero_point else ",zero_point=false"
        return f"n={self.n},k={self.k},group_size={self.group_size},dtype={self.dtype}{zeros}"


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """A layer plus m, the number of tokens.

    Raises:
        LayerError: m is not positive.
    """

    layer: Layer
    m: int

    def __post_init__(self) -> None:
        if self.m < 1:
            raise LayerError(f"m={self.m} is not a number of tokens; use m >= 1")

    @property
    def operations(self) -> int:
        """Floating-point operations: a multiply and an add for each weight and token."""
        return 2 * self.m * self.layer.n * self.layer.k

    @property
    def moved_bytes(self) -> int:
        """The fewest bytes that must move: weights, x and out once each."""
        width = 4 if self.layer.dtype == "fp32" else 2
        return self.layer.weight_bytes + width * self.m * (self.layer.n + self.layer.k)

    def __str__(self) -> str:
        return f"m={self.m},{self.layer}"


def shard_layer(layer: Layer, dim: int, of: int) -> Layer:
    """The layer of each of `of` equal shards along n (dim 0) or k (dim 1).

    Where a shard of k starts inside a group, all shards have the largest smaller groups that fit, and scales
    and zeros are repeated. One group of all k stays one group.

    Raises:
        LayerError: `of` does not divide the dimension, or no kernel takes a shard's numbers.
    """
    name, size = ("n", layer.n) if dim == 0 else ("k", layer.k)
    if of < 1 or size % of:
        raise LayerError(f"{name}={size} does not split into {counted(of, 'shard')}")
    part = size // of
    if dim == 0:
        return replace(layer, n=part)
    if layer.groups == 1:
        return replace(layer, k=part)
    fitting = [
        size
        for size in (*GROUP_SIZES, part)
        if size <= layer.group_size and layer.group_size % size == 0 and part % size == 0
    ]
    if not fitting:
        parts = f"{counted(of, 'shard')} of {part}"
        raise LayerError(f"k={layer.k} in {parts}: no group size of 32 or more divides a shard")
    return Layer(layer.n, part, layer.scheme, group_size=max(fitting))
