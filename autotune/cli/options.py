"""Options that several verbs share, and what their values mean."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from autotune.checkpoints.shapes import PRESETS, Shape, parse_shapes
from autotune.values.duration import seconds_of
from autotune.values.errors import BudgetError, LayerError, ShapesError
from autotune.values.layer import Problem, bucket_of, buckets_on
from autotune.values.paths import database_url, shown
from autotune.values.policy import POLICIES
from autotune.values.scheme import DTYPES

if TYPE_CHECKING:
    from autotune.records.lookup import Lookup
    from autotune.search.executor import Executor
    from autotune.store.entries import Wanted
    from autotune.values.device import Device

Command = TypeVar("Command", bound=Callable[..., Any])
Option = Callable[[Any], Any]

_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?")
_LONGEST_REASON = 500


def _tokens(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Numbers of tokens, from `1,16`."""
    if text is None:
        return None
    tokens = []
    for part in text.split(","):
        if not re.fullmatch(r"\s*[0-9]+\s*", part) or int(part) < 1:
            raise click.BadParameter(
                f"{part.strip()!r} is not a number of tokens; give whole numbers >= 1, as 1,16"
            )
        tokens.append(int(part))
    return tuple(dict.fromkeys(tokens))


def seconds(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """Seconds, from `90s`, `5m` or `1h`; the callback of an option."""
    if text is None:
        return None
    try:
        return seconds_of(text)
    except BudgetError as error:
        raise click.BadParameter(str(error)) from None


def not_blank(_: click.Context, __: click.Parameter, text: str) -> str:
    """The callback of an argument for which nothing shall stand, as an unset variable of a shell would."""
    if not text.strip():
        raise click.BadParameter("it is blank; give a path or an address")
    return text


def _reason(_: click.Context, __: click.Parameter, text: str | None) -> str | None:
    """A reason that a database can keep and a line can show."""
    if text is not None and not (text.strip() and text.isprintable() and len(text) <= _LONGEST_REASON):
        raise click.BadParameter(f"give one line of text, of at most {_LONGEST_REASON} characters")
    return text


_TOKENS = click.option(
    "--m",
    callback=_tokens,
    metavar="M[,M...]",
    help="Numbers of tokens, as 1,16.  [default: every bucket; to 32 on a CPU]",
)
_MODELS_OF_DEVICES = click.option(
    "--device",
    multiple=True,
    metavar="MODEL|all|cpu|cuda:N",
    help="Records of this device model, as 'NVIDIA H200', or of a device here. Give it several times.",
)
_MODEL = (
    click.option(
        "--shapes",
        multiple=True,
        metavar="MODEL",
        help=f"Layers to work on: {', '.join(PRESETS)}; a config.json or a model folder; or "
        "n=4096,k=4096,group_size=128. Give it several times, or join with ';'.",
    ),
    _TOKENS,
    click.option("--group-size", type=int, metavar="32|64|128|-1", help="Weights per scale; -1: all of k."),
    click.option("--dtype", type=click.Choice(DTYPES), help="Type of activations and scales."),
    click.option(
        "--zero-point/--no-zero-point", default=None, help="Weights have zeros, or every zero is 8."
    ),
    click.option("--tp", type=click.IntRange(min=1), default=1, help="Layers of one of this many devices."),
    click.option("--unfused", is_flag=True, help="Layers of a model whose q, k, v and gate, up stay apart."),
)
_SERVING = (
    click.option(
        "--serving",
        multiple=True,
        metavar="MODEL",
        help="In place of --shapes: the layers as vLLM merges and, with --tp, shards them, for the numbers "
        "of tokens that `vllm serve` runs: the sizes of its CUDA graphs, and every chunk of prefill.",
    ),
    click.option(
        "--max-num-seqs",
        type=click.IntRange(min=1),
        help="As for `vllm serve`.  [default: 1024, vLLM's on an H200 and its like]",
    ),
    click.option(
        "--max-num-batched-tokens",
        type=click.IntRange(min=1),
        help="As for `vllm serve`.  [default: 8192, vLLM's on an H200 and its like]",
    ),
)
_PLACE = click.option(
    "--device", default="auto", metavar="auto|cpu|cuda:N", help="Where.  [default: a GPU if any]"
)
_PLACES = (
    click.option(
        "--device",
        default="auto",
        metavar="auto|all|cpu|cuda:N[,...]",
        help="Where: cuda:0,cuda:1 share the work, all is every GPU; with Ray also a model, as H200.  "
        "[default: a GPU if any; with Ray all, or every CPU of a cluster without GPUs]",
    ),
    click.option(
        "--executor",
        type=click.Choice(("local", "ray")),
        default="local",
        help="On this machine, or on the nodes of a Ray cluster.  [default: local]",
    ),
    click.option(
        "--address", help="The Ray cluster's address.  [default: RAY_ADDRESS, or the cluster that runs here]"
    ),
    click.option("--allow-busy", is_flag=True, help="Measure although others compute on the device."),
)
_CHANNEL = click.option(
    "--channel", type=click.Choice(("stable", "candidate")), help="A channel of a fleet's database."
)
_REASON = click.option(
    "--reason", callback=_reason, help="Why; it is kept with the channel, and autotune history shows it."
)
_WATCH = click.option(
    "--watch",
    callback=seconds,
    metavar="DURATION",
    help="Go on, again after this time, as 5m, until Ctrl-C or SIGTERM.",
)
_DATABASE = click.option(
    "--db", metavar="PATH|URL", help="Database.  [default: AUTOTUNE_DB, or the user's own file]"
)


policy_option = click.option(
    "--policy",
    type=click.Choice(POLICIES),
    help="What to choose by: the time of a call; the same bits at each run; the same bits of a row with any "
    "number of others; or the energy of a call.  [default: AUTOTUNE_POLICY, else fast]",
)


def _together(*options: Option) -> Option:
    """All of them as one decorator; help shows them in this order."""
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(options), command)


serving_options = _together(*_SERVING)
place_options = _together(*_PLACES)
model_options = _together(*_MODEL, _PLACE, _DATABASE)
layer_options = _together(*_MODEL[1:], _PLACE, _DATABASE)
"""Those of `model_options` without --shapes."""
fleet_options = _together(*_MODEL, *_PLACES, _DATABASE)
"""Those of `model_options`, for several devices."""
wanted_options = _together(*(option for option in _MODEL if option is not _TOKENS), _MODELS_OF_DEVICES)
"""Which records are meant, for `wanted_records`: all where none is given."""


def chosen_device(name: str) -> Device:
    """The device that --device names.

    Raises:
        UsageError: the name means nothing.
        DeviceError: there is no such device.
    """
    if not _DEVICE.fullmatch(name):
        raise click.UsageError(f"device {name!r} is not auto, cpu, cuda or cuda:N")
    from autotune.values.device import find_device

    return find_device(name)


def check_devices(names: str) -> None:
    """Raise UsageError when one of the names, joined by commas, means nothing; `all` stands alone."""
    for name in map(str.strip, names.split(",")):
        if names != "all" and not _DEVICE.fullmatch(name):
            raise click.UsageError(f"device {name!r} is not auto, all, cpu, cuda or cuda:N")


def check_counter(device: Device, energy: bool) -> None:
    """Refuse --energy where there is none to read."""
    if energy and device.kind != "cuda":
        raise click.UsageError(f"--energy reads the counter of an NVIDIA GPU; {device.name} has none.")


def database_option(command: Command) -> Command:
    """--db."""
    return _DATABASE(command)


def channel_option(command: Command) -> Command:
    """--channel."""
    return _CHANNEL(command)


def reason_option(command: Command) -> Command:
    """--reason, None or a line of text."""
    return _REASON(command)


def watch_option(command: Command) -> Command:
    """--watch."""
    return _WATCH(command)


def wanted_records(
    shapes: Sequence[str],
    device: Sequence[str],
    *,
    devices_here: bool = False,
    **layers: Any,
) -> Wanted:
    """The records that `wanted_options` name; without a device all, or those of `devices_here`.

    Raises:
        UsageError: as `chosen_shapes`, or a device is blank, or stands beside all of them.
        DeviceError: there is no such device.
    """
    if not all(map(str.strip, device)) or ("all" in device and len(device) > 1):
        raise click.UsageError("--device is the name of a model or of a device here; all stands alone")
    from autotune.store.entries import Wanted
    from autotune.values.device import cpu_device, cuda_devices, find_device

    plain = names_no_layer(shapes, **layers)
    chosen = None if plain else {shape.layer for shape in chosen_shapes(shapes, **layers)}
    if "all" in device or not (device or devices_here):
        return Wanted(None, chosen)
    if not device:
        return Wanted({each.name for each in (*cuda_devices(), cpu_device())}, chosen)
    here = {find_device(name).name if _DEVICE.fullmatch(name) else name for name in device}
    return Wanted(here, chosen)


def chosen_shapes(
    shapes: Sequence[str], tp: int, unfused: bool, serving: Sequence[str] = (), **asked: Any
) -> list[Shape]:
    """The layers that the options name; `asked` are those of the scheme.

    Raises:
        UsageError: there is neither --shapes nor --serving, or both; a value means nothing, or its numbers do
            not fit together.
    """
    if serving and (shapes or unfused):
        both = "--shapes" if shapes else "--unfused"
        raise click.UsageError(f"--serving MODEL is the layers that vLLM runs of it; leave {both} out.")
    if not shapes and not serving:
        raise click.UsageError("Missing option '--shapes'; give a model, as --shapes llama7b.")
    models = ";".join(serving or shapes)
    try:
        return parse_shapes(models, tp, unfused, bool(serving), **asked)
    except (ShapesError, LayerError) as error:
        raise click.UsageError(str(error)) from None


def names_no_layer(
    shapes: Sequence[str], tp: int, unfused: bool, serving: Sequence[str] = (), **asked: Any
) -> bool:
    """Whether all of them were left out."""
    unasked = all(value is None for value in asked.values())
    return not shapes and not serving and unasked and (tp, unfused) == (1, False)


def chosen_executors(
    device: str, executor: str, address: str | None, allow_busy: bool, db: str | None
) -> Sequence[Executor]:
    """One executor for each device that the options name; they measure for the database.

    Raises:
        UsageError: there is an --address without Ray, or a name means nothing.
        DeviceError: there is no such device, or no such cluster.
    """
    if executor == "ray":
        from autotune.executors.ray import ray_executors

        return ray_executors(address, device, allow_busy)
    if address is not None:
        raise click.UsageError("--address is a Ray cluster's; give it with --executor ray.")
    check_devices(device)
    from autotune.executors.local import local_executors

    return local_executors(device, allow_busy, shown(database_url(db)))


def served_tokens(
    m: Sequence[int] | None,
    serving: Sequence[str],
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
) -> tuple[int, ...] | None:
    """The buckets that an engine of these limits runs; None without --serving, or where --m names them.

    Raises:
        UsageError: a limit is given beside --m or without --serving, or the limits do not fit together.
    """
    limited = max_num_seqs is not None or max_num_batched_tokens is not None
    if limited and (m or not serving):
        raise click.UsageError(
            "--max-num-seqs and --max-num-batched-tokens go with --serving, in place of --m."
        )
    if m or not serving:
        return None
    from autotune.serving.tokens import served_buckets

    try:
        return served_buckets(max_num_seqs, max_num_batched_tokens)
    except LayerError as error:
        raise click.UsageError(str(error)) from None


def chosen_tokens(
    m: Sequence[int] | None, device: Device, served: Sequence[int] | None = None
) -> tuple[int, ...]:
    """The numbers of tokens asked for, else those of `served`, or of all buckets, that suit the device."""
    if m:
        return tuple(m)
    sensible = buckets_on(device.kind)
    return sensible if served is None else tuple(bucket for bucket in served if bucket in sensible)


def tuned_problems(shapes: Sequence[Shape], tokens: Sequence[int]) -> list[Problem]:
    """The problems that are tuned for these numbers of tokens: m rounded up to its bucket, said on stderr."""
    buckets = [bucket_of(m) for m in tokens]
    for m, bucket in zip(tokens, buckets, strict=True):
        if m != bucket:
            click.echo(f"m={m} is served by the bucket m={bucket}", err=True)
    return [Problem(shape.layer, m) for shape in shapes for m in dict.fromkeys(buckets)]


def answered_problems(shapes: Sequence[Shape], tokens: Sequence[int], lookup: Lookup) -> list[Problem]:
    """The problems that answer these numbers of tokens: of finer buckets those that have a record."""
    return [answer.problem for shape in shapes for answer in lookup.answers(shape.layer, tokens)]
