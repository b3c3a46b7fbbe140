"""`autotune prefetch`: compile ahead what a model would compile when it loads."""

from __future__ import annotations

from typing import Any

import click

from autotune.cli.options import chosen_device, chosen_shapes, chosen_tokens, layer_options
from autotune.values.counts import counted
from autotune.values.errors import CompileError

_EXAMPLES = """\b
Examples:
  autotune prefetch ./my-model
  autotune prefetch llama7b --m 1,16"""


@click.command(epilog=_EXAMPLES)
@click.argument("model")
@layer_options
def command(model: str, m: tuple[int, ...] | None, device: str, db: str | None, **layers: Any) -> None:
    """Compile the kernels that MODEL would run, where neither the database nor the cache has them.

    Those of predicted configs above all: a model that loads compiles few of them, and runs the next best for
    the others. MODEL is what --shapes of the other verbs takes. Kernels go to the user's cache.
    """
    chosen = chosen_shapes((model,), **layers)
    from autotune.records.lookup import Lookup
    from autotune.records.prefetch import prefetch

    found = chosen_device(device)
    needed, lacking, errors = prefetch(
        Lookup(found, db), (shape.layer for shape in chosen), chosen_tokens(m, found)
    )
    if errors:
        raise CompileError(f"{counted(len(errors), 'kernel')} did not build; the first: {errors[0]}")
    click.echo(f"{counted(needed, 'kernel')}, {lacking} of them not in the database but in the cache now")
