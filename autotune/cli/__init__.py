"""The command line: one verb per file, imported when it is asked for, and one error boundary."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence

import click

from autotune.console.progress import Interrupted
from autotune.values.counts import counted
from autotune.values.errors import AutotuneError

# A verb is the module of this folder with its name; its click command is the module's `command`.
VERBS = (
    *("sweep", "lookup", "bench", "coverage", "prefetch", "fit", "jobs", "devices", "daemon"),
    *("export", "import", "bundle", "keys", "pull", "push", "promote", "rollback", "history"),
    *("serve", "report", "doctor", "db"),
)


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"autotune.cli.{cmd_name}").command
        return command


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from autotune import __version__

        click.echo(f"autotune {__version__}")
        ctx.exit()


@click.group(cls=_Verbs, epilog="Example: autotune sweep --shapes llama7b")
@click.option("--version", is_flag=True, callback=_version, is_eager=True, help="Print the version.")
def cli(**_: bool) -> None:
    """Find the fastest int4 GEMM kernel of each problem on this device, and keep the answer.

    Results go to stdout; progress and warnings to stderr. Exit codes: 0 done, 1 error, 2 usage,
    3 a requirement was not met, 130 interrupted with everything finished so far stored.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. An error that is not ours is a bug and shows its traceback."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {_line(message)}\n"
    try:
        with cli.make_context("autotune", list(sys.argv[1:] if arguments is None else arguments)) as context:
            cli.invoke(context)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except AutotuneError as error:
        click.echo(f"error: {_line(error)}", err=True)
        return 1
    except KeyboardInterrupt as error:
        stored = f": {counted(error.stored, 'problem')} stored" if isinstance(error, Interrupted) else ""
        click.echo(f"interrupted{stored}", err=True)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has enough. Python flushes stdout once more at exit, into nowhere now.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _line(message: object) -> str:
    """The message in one line; what a file's name or content would make a terminal do is shown instead."""
    line = " ".join(str(message).split())
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in line)
