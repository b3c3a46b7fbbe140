"""`autotune keys`: keys that sign bundles, and the list of those that are trusted."""

from __future__ import annotations

import click


@click.group(epilog="Example: autotune keys new release")
def command() -> None:
    """Look after keys: those that sign, those trusted.

    Both are in the user's configuration folder.
    """


@command.command(epilog="\b\nExample:\n  autotune keys new release > release.pub")
@click.argument("name")
def new(name: str) -> None:
    """Make a key called NAME that signs here; its public line goes to stdout, for others to trust."""
    from autotune.bundles.keys import new_key

    click.echo(new_key(name))


@command.command(epilog="\b\nExample:\n  autotune keys trust release.pub")
@click.argument("key")
def trust(key: str) -> None:
    """Trust what KEY signs: the public line of a key, or a file with it."""
    from autotune.bundles import keys

    found = keys.find_trusted(key)
    keys.trust(found)
    click.echo(f"{found.name} ({found.fingerprint}) is trusted")


@command.command(epilog="\b\nExample:\n  autotune keys distrust release")
@click.argument("key")
def distrust(key: str) -> None:
    """Trust KEY, a name or a fingerprint, no longer; what was taken in before stays until a rollback."""
    from autotune.bundles import keys

    found = keys.distrust(key)
    click.echo(f"{found.name} ({found.fingerprint}) is no longer trusted")


@command.command("list", epilog="\b\nExample:\n  autotune keys list")
def show() -> None:
    """Show the keys: `trusted` or `signs here`, the fingerprint and the public line of each."""
    from autotune.bundles.keys import own_keys, trusted_keys

    for what, found in (("trusted", trusted_keys()), ("signs here", own_keys())):
        for key in found:
            click.echo(f"{what:10}  {key.fingerprint}  {key}")
