"""`autotune bundle`: named, immutable, signed sets of records."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune.cli.options import database_option, wanted_options, wanted_records

if TYPE_CHECKING:
    from autotune.bundles.format import Bundle

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group(epilog="Example: autotune bundle create llama-h200 --device 'NVIDIA H200' --key release")
def command() -> None:
    """Make, verify and show signed sets of records.

    A bundle is one file, which never changes.
    """


@command.command(
    epilog="\b\nExample:\n  autotune bundle create llama --shapes llama7b --binaries --key release"
)
@click.argument("name")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), default=".", help="Where.  [default: .]"
)
@click.option("--key", help="Sign with this key of autotune keys.  [default: no signature]")
@click.option(
    "--expires", type=click.IntRange(1, 36_500), metavar="DAYS", help="The signature counts so long."
)
@click.option("--binaries", is_flag=True, help="With the winners' compiled kernels.")
@click.option("--samples", is_flag=True, help="With every trial and its samples.")
@wanted_options
@database_option
def create(
    name: str,
    folder: Path,
    key: str | None,
    expires: int | None,
    binaries: bool,
    samples: bool,
    db: str | None,
    **wanted: Any,
) -> None:
    """Write the records of today's kernels to NAME-HASH.bundle.

    The same records under the same name make the same file. Its path goes to stdout.
    """
    if expires is not None and key is None:
        raise click.UsageError("--expires is of a signature; give the --key that signs.")
    from autotune.bundles.collect import collected
    from autotune.bundles.keys import signing_key
    from autotune.bundles.trust import create as write
    from autotune.store.store import Store

    which = wanted_records(**wanted)
    signing = None if key is None else signing_key(key)
    with Store.open(db) as store:
        contents = collected(store, which, binaries, samples)
    _, path = write(name, contents, folder, signing, None if expires is None else expires * 86_400.0)
    click.echo(path)


@command.command(epilog="\b\nExample:\n  autotune bundle verify llama-h200-1f2e3d4c5b6a.bundle")
@click.argument("file", type=_FILE)
def verify(file: Path) -> None:
    """Check that FILE is whole and signed by a trusted key; exits 1 and says why when it is not."""
    from autotune.bundles.format import read_bytes
    from autotune.bundles.keys import trusted_keys
    from autotune.bundles.trust import open_trusted

    bundle, key = open_trusted(read_bytes(file), str(file), trusted_keys())
    click.echo(f"{bundle.id} is whole and signed by {key.name} ({key.fingerprint})")


@command.command(epilog="\b\nExample:\n  autotune bundle show llama-h200-1f2e3d4c5b6a.bundle --json")
@click.argument("file", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(file: Path, as_json: bool) -> None:
    """Show what FILE holds, and who signed it; whether that is to be trusted, verify says."""
    from autotune.bundles.format import read_bundle

    fields = _fields(read_bundle(file))
    if as_json:
        click.echo(json.dumps(fields))
        return
    for name, value in fields.items():
        for each in value if isinstance(value, list) else [value]:
            click.echo(f"{name:10}  {_shown(each)}")


def _shown(value: Any) -> str:
    if isinstance(value, str | int):
        return str(value)
    if "until" not in value:
        return "  ".join(map(str, value.values()))
    from autotune.store.fields import moment

    end = "" if value["until"] is None else f", until {moment(value['until'], 'until')}"
    return f"{value['key']}, {moment(value['at'], 'at')}{end}"


def _fields(bundle: Bundle) -> dict[str, Any]:
    from autotune.bundles.keys import PublicKey

    contents = bundle.contents
    groups = Counter(
        (each.device.name, each.device.arch, each.environment.driver) for each in contents.entries
    )
    return {
        "bundle": bundle.id,
        "sha256": bundle.digest,
        "records": [
            {"device": device, "arch": arch, "driver": driver, "records": count}
            for (device, arch, driver), count in sorted(groups.items())
        ],
        "binaries": len({each.binary.unit_key for each in contents.entries if each.binary is not None}),
        "trials": len(contents.attempts),
        "signatures": [
            {"key": PublicKey(signed.key, "?").fingerprint, "at": signed.at, "until": signed.until}
            for signed in bundle.signatures
        ],
    }
