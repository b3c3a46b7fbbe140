"""autotune as a quantizer of transformers: `from_pretrained(…, quantization_config=QuantizationConfig())`."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autotune.formats import detect
from autotune.models.apply import warn_untuned
from autotune.models.checkpoint import Checkpoint
from autotune.models.linears import Linears
from autotune.records.lookup import Lookup
from autotune.runtime.linear import Int4Linear
from autotune.values.counts import counted
from autotune.values.device import find_device
from autotune.values.errors import AutotuneError, FormatError
from autotune.values.paths import Location, shown
from autotune.values.policy import policy_in_force

try:
    import transformers

    if int(transformers.__version__.partition(".")[0]) < 5:
        raise ImportError(f"transformers {transformers.__version__}")
    from transformers.quantizers import AutoHfQuantizer, HfQuantizer
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise AutotuneError(
        f"models are loaded through transformers 5 or later, but found: {error};"
        " pip install 'autotune-int4[transformers]'"
    ) from None

METHOD = "autotune"


@register_quantization_config(METHOD)
class QuantizationConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """Load a checkpoint's int4 linears as tuned ones.

    `db` is the database to look in, by default the one in force. `fuse` makes one linear of those that read
    the same x, where the architecture is known to allow it. `device` is where the linears go, by default that
    of `device_map`. `checkpoint` is what the checkpoint's own `quantization_config` says, once it is known.
    `policy` is what configs are chosen by, as for `apply`.

    Raises:
        ConfigError: there is no such policy.
    """

    def __init__(
        self,
        db: Location | None = None,
        fuse: bool = True,
        device: str | None = None,
        checkpoint: dict[str, Any] | None = None,
        quant_method: str = METHOD,
        policy: str | None = None,
    ) -> None:
        self.db = None if db is None else shown(db)  # transformers prints and saves it
        self.fuse = fuse
        self.device = device
        self.checkpoint = checkpoint
        self.quant_method = quant_method
        self.policy = policy_in_force(policy)

    def over(self, checkpoint: dict[str, Any]) -> QuantizationConfig:
        """The same for a checkpoint that says this of itself."""
        return QuantizationConfig(self.db, self.fuse, self.device, checkpoint, policy=self.policy)


@register_quantizer(METHOD)
class Quantizer(HfQuantizer):  # type: ignore[misc]
    """What transformers calls while it loads a model; errors are autotune's own.

    The linears are taken out of the model while transformers reads all other weights, and come from the same
    files afterwards, packed one by one. The model has the report as `autotune_report`.
    """

    quantization_config: QuantizationConfig
    is_trainable = False
    is_compileable = True

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Nothing is needed beside transformers."""

    def update_device_map(self, device_map: Any) -> Any:
        """The map as it is, once the linears' device is known."""
        places = set(device_map.values()) if isinstance(device_map, dict) else {device_map or "cpu"}
        if len(places) > 1 or places & {"auto", "balanced", "balanced_low_0", "sequential"}:
            raise FormatError(f"device_map={device_map!r} may mean several devices; give it one, as 'cuda:0'")
        place = places.pop()
        place = f"cuda:{place}" if isinstance(place, int) else str(place)
        self._device = find_device(self.quantization_config.device or place)
        return device_map

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype as it is, if kernels compute in it."""
        fitting = [torch.float16, torch.bfloat16]
        if self._device.kind == "cpu":
            fitting.append(torch.float32)
        if dtype not in fitting:
            names = ", ".join(str(known) for known in fitting)
            raise FormatError(f"dtype={dtype} on {self._device.torch_name}; give dtype= one of {names}")
        self._dtype = dtype
        return dtype

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: list[str], **_: Any) -> None:
        told = self.quantization_config.checkpoint
        if not told:
            raise FormatError("config.json has no quantization_config; only 4-bit checkpoints are loaded")
        scheme = replace(detect(told), dtype=self._dtype)
        checkpoint = Checkpoint(Path(file) for file in checkpoint_files)
        wanted = self.quantization_config
        lookup = Lookup(self._device, wanted.db, policy=wanted.policy)
        self._linears = Linears(checkpoint, scheme, lookup, fuse=wanted.fuse)
        read_by_us = self._linears.prepare(model, model.config.model_type)
        ignored = model._keys_to_ignore_on_load_unexpected
        ignored = [] if ignored is None else ignored
        # A list up to transformers 5.0, a set since.
        model._keys_to_ignore_on_load_unexpected = type(ignored)((*ignored, read_by_us))

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        model.autotune_report = report = self._linears.fill(model)
        del self._linears
        if self._device.kind == "cpu":
            _own_tensors(model)
        if report.skipped:
            name, reason = next(iter(report.skipped.items()))
            left = counted(len(report.skipped), "int4 linear")
            warnings.warn(f"without a kernel: {left}; the first: {name} {reason}", stacklevel=2)
        if report.untuned:
            warn_untuned(report.untuned, self.quantization_config.db)
        return model

    def is_serializable(self) -> bool:
        """False: the packed weights are no checkpoint; the one that was loaded is."""
        return False


def _own_tensors(model: torch.nn.Module) -> None:
    """Copy what transformers read, so that the file may change or go: on a CPU it maps the file."""
    for module in model.modules():
        if not isinstance(module, Int4Linear):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = tensor.data.clone()


def _let_ours_win() -> None:
    """Have transformers take a QuantizationConfig that is given beside the checkpoint's own.

    It refuses a config of another class than the checkpoint's, and has no way to register one that reads
    several methods. Calls without a QuantizationConfig are unchanged.
    """
    merge = AutoHfQuantizer.merge_quantization_configs

    @functools.wraps(merge)
    def merged(quantization_config: Any, quantization_config_from_args: Any) -> Any:
        if isinstance(quantization_config_from_args, QuantizationConfig):
            return quantization_config_from_args.over(dict(quantization_config))
        return merge(quantization_config, quantization_config_from_args)

    AutoHfQuantizer.merge_quantization_configs = staticmethod(merged)


_let_ours_win()
