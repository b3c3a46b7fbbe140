"""A terminal for programs under test: what they write, and what a person sees of it in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

_ROWS = 50
_PART = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|\r|\n|.", re.DOTALL)


class Screen:
    """Lines of so many columns, as a VT100 shows them; what scrolls out at the top is kept.

    It knows what rich uses: colours (ignored), cursor up, and two ways to wipe.
    """

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._lines: list[list[str]] = [[]]
        self._row = self._column = 0
        self._continued: set[int] = set()

    def lines(self) -> list[str]:
        """What is there, as it was before it was too long; without spaces at the ends."""
        ends = ["" if row in self._continued else "\n" for row in range(len(self._lines))]
        shown = ("".join(line) + end for line, end in zip(self._lines, ends, strict=True))
        return [line.rstrip() for line in "".join(shown).rstrip().splitlines()]

    def write(self, text: str) -> None:
        """Show the text, as a terminal does."""
        for part in _PART.finditer(text):
            if part[2] is not None:
                self._control(part[1], part[2])
            elif part[0] == "\r":
                self._column = 0
            elif part[0] == "\n":
                self._down()
            else:
                self._put(part[0])

    def _control(self, argument: str, what: str) -> None:
        if what == "A":
            self._row = max(0, self._row - int(argument or 1))
        elif what == "K":
            line = self._lines[self._row]
            del line[0 if argument == "2" else self._column :]
            self._continued.discard(self._row)
        elif what not in "mhl":
            raise AssertionError(f"this terminal does not know ESC [ {argument}{what}")

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._lines):
            self._lines.append([])

    def _put(self, character: str) -> None:
        if self._column == self._columns:
            self._continued.add(self._row)
            self._column = 0
            self._down()
        line = self._lines[self._row]
        line += " " * (self._column + 1 - len(line))
        line[self._column] = character
        self._column += 1


def run(arguments: tuple[str, ...], columns: int, cwd: Path) -> tuple[int, str]:
    """Run a program on a terminal of so many columns; its exit code and all that it wrote there."""
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        arguments, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"}
    ) as running:
        os.close(theirs)
        written = bytearray()
        try:
            while part := os.read(mine, 1 << 16):
                written += part
        except OSError:  # nobody has the other end any more
            pass
    os.close(mine)
    return running.returncode, written.decode()
