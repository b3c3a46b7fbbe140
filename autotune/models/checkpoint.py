"""The safetensors files of a model, read one tensor at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.checkpoints.weights import expect_file, find_weights
from autotune.values.errors import FormatError

if TYPE_CHECKING:
    import torch


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
    weights = find_weights(folder)
    checkpoint = Checkpoint(weights.files)
    for name, file in weights.placed.items():
        if name not in checkpoint.names:
            raise FormatError(f"{folder / file} has no tensor {name}, which {weights.name} places there")
    return checkpoint


def _open(file: Path) -> Any:
    # Imported late, so that who has neither this nor transformers is told how to get both.
    from safetensors import SafetensorError, safe_open

    if file.suffix != ".safetensors":
        raise FormatError(f"{file} is not a safetensors file; only those are read")
    expect_file(file)
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{file} does not read: {error}; download it again") from None
