"""What the query of a page's URL says, and the names that devices, layers and problems have in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from autotune.checkpoints.shapes import parse_shapes
from autotune.store.pages import Pages
from autotune.values.device import Device
from autotune.values.errors import AutotuneError, LayerError, ShapesError
from autotune.values.layer import Layer

SIDE_BY_SIDE = 4
"""Device models on one page."""
_LONGEST = 500
_MOST = 50
_LARGEST = 999_999_999
# No path: what a URL names is never read from the disk.
_LAYER = re.compile(r"n=[^/\\;]{1,200}")


class NoPage(AutotuneError):  # noqa: N818, it reads as what happened
    """A URL that asks for what is not there: a value of the parameter `name`, which can be one of `known`.

    `known` has what a link to each value says.
    """

    def __init__(self, message: str, name: str, known: Mapping[str, str] | Iterable[str]) -> None:
        super().__init__(message)
        self.name = name
        self.known = dict(known) if isinstance(known, Mapping) else {value: value for value in known}


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

    def choice(self, name: str, known: Mapping[str, str] | Sequence[str], default: str = "") -> str:
        """The value, which is one of these; where there is none, the default, else the first of these.

        Raises:
            NoPage: it is none of these.
        """
        value = self.one(name, default or next(iter(known), ""))
        if value not in known:
            raise NoPage(f"{name}={value!r} is not known here", name, known)
        return value

    def number(self, name: str, last: int = _LARGEST) -> int:
        """A whole number from 1 to the last, 1 where there is none.

        Raises:
            NoPage: it is none.
        """
        text = self.one(name, "1")
        if not re.fullmatch(r"[1-9][0-9]{0,8}", text) or int(text) > last:
            ends = "on" if last == _LARGEST else f"to {last}"
            known = ["1"] if last in (1, _LARGEST) else ["1", str(last)]
            raise NoPage(f"{name}={text!r} is not a whole number from 1 {ends}", name, known)
        return int(text)


def device_key(device: Device) -> str:
    """What URLs call the device model."""
    return f"{device.name} {device.arch}"


def device_named(devices: Sequence[Device], key: str) -> Device:
    """The device model that a URL names.

    Raises:
        NoPage: the database has none of that name.
    """
    known = {device_key(device): device for device in devices}
    if key not in known:
        missing = f"device={key!r} is not in this database" if key else "no device is named"
        raise NoPage(missing, "device", known.keys())
    return known[key]


def chosen_devices(pages: Pages, query: Query) -> tuple[list[Device], list[Device]]:
    """Every device model, and those that a URL names; where it names none, that of the newest sweep.

    Raises:
        NoPage: the database has none of that name, or there are too many.
    """
    devices = pages.devices()
    named = [device_named(devices, key) for key in query.all("device")]
    if len(named) > SIDE_BY_SIDE:
        message = f"device is named {len(named)} times, and {SIDE_BY_SIDE} stand side by side"
        raise NoPage(message, "device", map(device_key, devices))
    measured = [sweep.device for sweep in pages.sweeps(20) if sweep.source is None]
    return devices, named or measured[:1] or devices[:1]


def layer_named(text: str, stored: Iterable[Layer]) -> Layer:
    """The layer of its text, as `n=4096,k=4096,group_size=128,dtype=fp16`; some are `stored`.

    Raises:
        NoPage: it does not read.
    """
    reason = "give it as n=4096,k=4096,group_size=128,dtype=fp16"
    try:
        if _LAYER.fullmatch(text):
            (shape,) = parse_shapes(text)
            return shape.layer
    except (ShapesError, LayerError) as error:
        reason = str(error)
    missing = f"layer={text!r} does not read: {reason}" if text else "no layer is named"
    raise NoPage(missing, "layer", map(str, stored))


def scheme_of(layer: Layer) -> str:
    """What its text says besides n and k."""
    return str(layer).split(",", 2)[2]
