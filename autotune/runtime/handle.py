"""Handles: the text by which a graph names the plans of a layer, in whatever process the graph runs.

A compiled or exported graph outlives the process that traced it. So a handle says all that plans are made of:
the layer, the kind of device that its weight is packed for, the database, and the kernels of others if only
these are asked. A digest of the configs that were found keeps two states of one database apart.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.values.errors import ConfigError, LayerError
from autotune.values.layer import Layer
from autotune.values.paths import database_url, shown, sqlite_path
from autotune.values.policy import Policy, policy_in_force
from autotune.values.scheme import Scheme

if TYPE_CHECKING:
    from autotune.values.config import Config


_WITH_POLICY = 8
"""Values of a handle that names a policy; one of autotune 0.1 has more, and one of `fast` has less."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What plans are made of, but for the device, which is that of the tensors at a call.

    `kind` is the kind of device ("cuda" or "cpu") that the weight is packed for. `db` is None for the
    database in force, and `kernels` is None for autotune's own families. `policy` is that of the look-up.
    """

    layer: Layer
    kind: str
    db: str | None
    kernels: tuple[str, ...] | None
    policy: Policy


def handle_of(
    layer: Layer,
    kind: str,
    url: str,
    kernels: Iterable[str] | None,
    configs: Mapping[int, Config],
    policy: Policy = "fast",
) -> str:
    """The handle of plans that run these configs, each up to m tokens, which the database `url` gave."""
    names = None if kernels is None else sorted(kernels)
    found = [f"{m} {config}" for m, config in configs.items()]
    digest = hashlib.sha256(repr((url, names, found)).encode(errors="replace"))
    db = None if url == database_url() else _without_secrets(url)
    of = (layer.n, layer.k, str(layer.scheme), kind)
    said = [*of, db, names, digest.hexdigest()[:16], *([policy] if policy != "fast" else [])]
    return json.dumps(said, separators=(",", ":"))


@functools.cache
def origin_of(handle: str) -> Origin:
    """What the handle says.

    Raises:
        LayerError: it is none of ours.
    """
    try:
        said = json.loads(handle)
        policy = policy_in_force(said.pop()) if len(said) == _WITH_POLICY else "fast"
        n, k, *scheme, kind, db, names, _ = said
        if kind not in ("cuda", "cpu") or not isinstance(db, str | None):
            raise ValueError(kind, db)
        kernels = None if names is None else tuple(map(str, names))
        if len(scheme) == 1:
            layer = Layer(n, k, Scheme.parse(*scheme))
        else:  # a graph that autotune 0.1 exported
            group_size, dtype, zero_point = scheme
            layer = Layer(n, k, group_size=group_size, dtype=dtype, zero_point=zero_point)
        return Origin(layer, kind, db, kernels, policy)
    except (ValueError, TypeError, LayerError, ConfigError):
        raise LayerError(f"handle={handle!r} names no layer; take that of Int4Linear.plans") from None


def check_kind(origin: Origin, kind: str) -> None:
    """Raise LayerError when a weight of this origin is not packed for the kind of device that x is on."""
    if kind != origin.kind:
        raise LayerError(f"x is on {kind}, but the weight is packed for {origin.kind}; move x to the weight")


def _without_secrets(url: str) -> str:
    """A URL for a look-up, which reads files only: of another kind of database its scheme."""
    path = sqlite_path(url)
    return f"{shown(url).partition(':')[0]}://" if path is None else str(path.absolute())
