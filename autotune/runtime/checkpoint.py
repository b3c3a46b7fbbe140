"""The safetensors files of a model, read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.errors import FormatError

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Checkpoint:
    """The tensors of safetensors files by name. They are views of the mapped files: memory is what is copied.

    Raises:
        FormatError: a file is missing, is no safetensors file, or is shorter than it says.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._files: dict[str, Any] = {}
        for file in files:
            opened = _open(file)
            self._files.update(dict.fromkeys(opened.keys(), opened))

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors."""
        return self._files.keys()

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor of that name, which is in `names`."""
        found: torch.Tensor = self._files[name].get_tensor(name)
        return found


def open_folder(folder: Path) -> Checkpoint:
    """The checkpoint of a model's folder: its single file, or all that its index names.

    Raises:
        FormatError: there is neither, or as Checkpoint; a tensor of the index is missing.
    """
    if (folder / SINGLE).is_file():
        return Checkpoint([folder / SINGLE])
    if not (folder / INDEX).is_file():
        found = sorted(
            file.name for suffix in ("safetensors", "bin", "pt") for file in folder.glob(f"*.{suffix}")
        )
        held = f"found {', '.join(found)}" if found else "found no weights"
        raise FormatError(f"{folder} has no {SINGLE} or {INDEX} ({held}); only safetensors are read")
    placed = read_json(folder / INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise FormatError(f"{folder / INDEX} has no weight_map; download it again")
    checkpoint = Checkpoint(folder / file for file in sorted(set(placed.values())))
    for name, file in placed.items():
        if name not in checkpoint.names:
            raise FormatError(f"{folder / file} has no tensor {name}, which {INDEX} places there")
    return checkpoint


def read_json(file: Path) -> dict[str, Any]:
    """The object that the file holds.

    Raises:
        FormatError: it cannot be read, or holds something else.
    """
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{file} does not read as JSON: {error}") from None
    if not isinstance(document, dict):
        raise FormatError(f"{file} does not read as a JSON object")
    return document


def _open(file: Path) -> Any:
    # Imported late, so that who has neither this nor transformers is told how to get both.
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        raise FormatError(f"{file} is not a safetensors file; only those are read")
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{file} does not read: {error}; download it again") from None
