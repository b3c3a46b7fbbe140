"""`autotune.load`: the folder of a 4-bit checkpoint as a transformers model with tuned linears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from autotune.device import find_device
from autotune.errors import FormatError
from autotune.paths import Location
from autotune.runtime.checkpoint import open_folder, read_json
from autotune.runtime.quantizer import QuantizationConfig

_OLD_CONFIGS = ("quantize_config.json", "quant_config.json")
"""Where AutoGPTQ and AutoAWQ said how a checkpoint is quantized before config.json did."""


def load(
    path: str | Path,
    device: str = "cuda",
    *,
    db: Location | None = None,
    fuse: bool = True,
    dtype: torch.dtype | None = None,
) -> Any:
    """The causal language model in the folder `path`, for inference, its int4 linears tuned.

    The class is transformers' own; `model.autotune_report` says what each linear runs. `db` is the database
    to look in, by default the one in force; its troubles are warnings. `fuse` makes one linear of q, k and v
    and of gate and up where the architecture is known to allow it. `dtype` is what the model computes in, by
    default what config.json says. Linears are read and packed one at a time, so memory never holds more
    than the packed model and one unpacked linear.

    Raises:
        DeviceError: `device` is not here.
        FormatError, LayerError: the folder holds something else than a whole 4-bit checkpoint of an
            architecture that transformers has, or no kernel takes a linear; the message names it.
    """
    from transformers import AutoModelForCausalLM

    target = find_device(device)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; download the model and give the folder that holds it")
    config = _config(folder)
    config.quantization_config = QuantizationConfig(
        db, fuse, target.torch_name, _quantization(folder)
    ).to_dict()
    open_folder(folder)
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype or "auto", output_loading_info=True, local_files_only=True
    )
    missing = sorted(told["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FormatError(f"{folder} has no tensor {missing[0]}{more}; download it again")
    return model.to(target.torch_name)


def _config(folder: Path) -> Any:
    """The config of the model, which transformers has a causal class for."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    model_type = read_json(folder / "config.json").get("model_type")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    except (KeyError, ValueError):
        known = False
    if not known:
        raise FormatError(
            f"{folder / 'config.json'}: transformers has no causal model of model_type={model_type!r}"
        )
    return config


def _quantization(folder: Path) -> dict[str, Any]:
    """What the checkpoint says of its quantization."""
    told = read_json(folder / "config.json").get("quantization_config")
    for name in _OLD_CONFIGS:
        if not told and (folder / name).is_file():
            told = read_json(folder / name)
    if not isinstance(told, dict) or not told:
        raise FormatError(
            f"{folder / 'config.json'} has no quantization_config; only 4-bit checkpoints are loaded"
        )
    return told
