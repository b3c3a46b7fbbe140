"""How often linears were called, by number of tokens: what `autotune coverage` weighs by."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from autotune.models.tuned import plans_in
from autotune.runtime.plans import plans_alive
from autotune.values.errors import AutotuneError

if TYPE_CHECKING:
    import torch


def record_traffic(path: str | os.PathLike[str], model: torch.nn.Module | None = None) -> dict[int, int]:
    """Write how often this process has called its tuned linears, or those of the model, by number of tokens.

    The file is JSON, {"1": 900, "64": 12}, and is replaced whole; a server calls this from time to time, or
    when it ends. A call counts for the bucket that answered it. A replay of a CUDA graph calls nothing, so
    one that captured a call counts for it once.

    Returns:
        What was written.

    Raises:
        FormatError: the model has no tuned linear.
        AutotuneError: the file cannot be written.
    """
    counts: Counter[int] = Counter()
    for plans in plans_alive() if model is None else plans_in(model):
        counts.update(plans.calls)
    traffic = {m: calls for m, calls in sorted(counts.items()) if calls}
    file = Path(path)
    waiting = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        waiting.write_text(json.dumps(traffic) + "\n", encoding="utf-8")
        waiting.replace(file)
    except OSError as error:
        raise AutotuneError(f"histogram {file} cannot be written: {error.strerror}") from None
    return traffic
