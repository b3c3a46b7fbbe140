"""What the query of a page's URL says, and the names that devices, layers and problems have in it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from autotune.checkpoints.shapes import parse_shapes
from autotune.store.pages import Pages
from autotune.values.device import Device
from autotune.values.errors import AutotuneError, LayerError, ShapesError
from autotune.values.layer import Layer

SIDE_BY_SIDE = 4
"""Device models on one page."""
_LONGEST = 500
_MOST = 50
# No path: what a URL names is never read from the disk.
_LAYER = re.compile(r"n=[^/\\;]{1,200}")


class NoPage(AutotuneError):  # noqa: N818, it reads as what happened
    """A URL that asks for what is not there."""


class Query:
    """The parameters of a URL, in their order; a name may come several times."""

    def __init__(self, pairs: Sequence[tuple[str, str]] = ()) -> None:
        self.pairs = tuple((name, value[:_LONGEST]) for name, value in pairs[:_MOST] if value)

    def all(self, name: str) -> list[str]:
        """The different values of the name."""
        return list(dict.fromkeys(value for each, value in self.pairs if each == name))

    def one(self, name: str, default: str = "") -> str:
        """The first value of the name."""
        return next(iter(self.all(name)), default)

    def choice(self, name: str, known: Sequence[str]) -> str:
        """The value if it is one of these, else the first of these."""
        value = self.one(name)
        return value if value in known else known[0]

    def number(self, name: str, default: int = 1) -> int:
        """A whole number from 1 on.

        Raises:
            NoPage: it is none.
        """
        text = self.one(name, str(default))
        if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
            raise NoPage(f"{name}={text!r} is not a whole number from 1 on")
        return int(text)


def device_key(device: Device) -> str:
    """What URLs call the device model."""
    return f"{device.name} {device.arch}"


def device_named(devices: Sequence[Device], key: str) -> Device:
    """The device model that a URL names.

    Raises:
        NoPage: the database has none of that name.
    """
    found = next((device for device in devices if device_key(device) == key), None)
    if found is None:
        known = ", ".join(map(device_key, devices)) or "none yet"
        raise NoPage(f"no device {key!r} in this database; it has: {known}")
    return found


def chosen_devices(pages: Pages, query: Query) -> tuple[list[Device], list[Device]]:
    """Every device model, and the first that a URL names; where it names none, that of the newest sweep.

    Raises:
        NoPage: the database has none of that name.
    """
    devices = pages.devices()
    named = [device_named(devices, key) for key in query.all("device")[:SIDE_BY_SIDE]]
    newest = [sweep.device for sweep in pages.sweeps(1)]
    return devices, named or newest or devices[:1]


def layer_named(text: str) -> Layer:
    """The layer of its text, as `n=4096,k=4096,group_size=128,dtype=fp16`.

    Raises:
        NoPage: it does not read.
    """
    try:
        if _LAYER.fullmatch(text):
            (shape,) = parse_shapes(text)
            return shape.layer
    except (ShapesError, LayerError) as error:
        raise NoPage(f"layer {text!r}: {error}") from None
    raise NoPage(f"layer {text!r} does not read; give it as n=4096,k=4096,group_size=128,dtype=fp16")


def scheme_of(layer: Layer) -> str:
    """What its text says besides n and k."""
    return str(layer).split(",", 2)[2]
