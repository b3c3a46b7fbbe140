"""Whether a device still works: an illegal access of one kernel makes every later call on a GPU fail."""

from __future__ import annotations

import torch

from autotune.values.device import Device


def use(device: Device) -> None:
    """Make the device the one that torch means in this thread; without it, events are the first GPU's."""
    if device.kind == "cuda":
        torch.cuda.set_device(device.index)


def trouble(device: Device) -> str | None:
    """What keeps the device from working, in one line, or None; waits for all that was enqueued on it.

    It is the one in `use` from then on. The first call makes the process' context there, and on no other GPU,
    which takes a second or more.
    """
    if device.kind != "cuda":
        return None
    try:
        use(device)
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


def release(device: Device) -> None:
    """Give memory that torch keeps for later back to a GPU."""
    if device.kind == "cuda":
        torch.cuda.empty_cache()


def free_share(device: Device) -> float:
    """The share of a GPU's memory that is free once torch has given back what it keeps for later.

    Of a CPU's it is 0, as others need that memory.
    """
    if device.kind != "cuda":
        return 0.0
    release(device)
    free, total = torch.cuda.mem_get_info(device.index)
    return free / total
