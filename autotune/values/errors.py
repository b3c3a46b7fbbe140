"""Errors that a user can act on. The CLI prints each as one line and exits 1."""


class AutotuneError(Exception):
    """Base of every error that autotune raises on purpose."""


class LayerError(AutotuneError):
    """A layer or problem whose numbers do not fit together."""


class ShapesError(AutotuneError):
    """A --shapes value that names no known preset, file or explicit shape."""


class ConfigError(AutotuneError):
    """A config text that does not parse, or a config outside a family's space."""


class DeviceError(AutotuneError):
    """A device that is not there or that no family supports."""


class BudgetError(AutotuneError):
    """A time budget that is no duration."""


class CompileError(AutotuneError):
    """A kernel that did not compile, or no compiler to compile it with."""


class LaunchError(AutotuneError):
    """A CUDA driver call that failed; the message carries the driver's own words."""


class FormatError(AutotuneError):
    """Quantized tensors that are not what their format promises."""


class DatabaseError(AutotuneError):
    """A database that cannot be opened, read or written."""


class BundleError(AutotuneError):
    """A bundle that does not read, is not what was signed, or may not be used."""


class TrustError(AutotuneError):
    """A key that does not read, is not there, or cannot be written."""


class LeaseLost(AutotuneError):  # noqa: N818, it reads as what happened
    """A job whose lease ended while it was tuned, so that its result was discarded."""
