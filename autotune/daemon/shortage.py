"""What a machine lacks for a while, as file descriptors: trouble to wait out."""

from __future__ import annotations

import errno

_LACKS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT}


def shortage(error: Exception) -> str | None:
    """What the machine lacks, in its own words; None for an error of another kind."""
    lacks = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _LACKS)
    return str(error) or "no memory is left" if lacks else None
