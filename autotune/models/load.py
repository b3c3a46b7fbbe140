"""`autotune.load`: the folder of a 4-bit checkpoint as a transformers model with tuned linears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from autotune.checkpoints.quantization import parse_quantization
from autotune.checkpoints.stored_layers import quantization_of
from autotune.checkpoints.weights import expect_file, find_weights, read_json
from autotune.models.checkpoint import open_folder
from autotune.models.quantizer import QuantizationConfig
from autotune.values.device import find_device
from autotune.values.errors import FormatError
from autotune.values.paths import Location


def load(
    path: str | Path,
    device: str = "auto",
    *,
    db: Location | None = None,
    fuse: bool = True,
    dtype: torch.dtype | None = None,
    policy: str | None = None,
) -> Any:
    """The causal language model in the folder `path`, for inference, its int4 linears tuned.

    The class is transformers' own; `model.autotune_report` says what each linear runs, and why one does not
    run a tuned kernel. `device` is "auto" (a GPU if there is any), "cpu" or "cuda:N". `db` is the database
    to look in, by default the one in force; its troubles are warnings. `fuse` makes one linear of q, k and v
    and of gate and up where the architecture is known to allow it. `dtype` is what the model computes in, by
    default what config.json says. `policy` is as for `apply`. Linears are read and packed one at a time, so
    memory never holds more than the packed model and one unpacked linear. The files may change or go once
    the model is loaded.

    Raises:
        DeviceError: `device` is not here.
        FormatError, LayerError: the folder holds something else than a whole 4-bit checkpoint of an
            architecture that transformers has, or no kernel takes any of its linears; the message names it.
        ConfigError: there is no such policy.
    """
    from transformers import AutoModelForCausalLM

    target = find_device(device)
    folder = _folder(path)
    told = _quantization(folder)
    config = _config(folder)
    config.quantization_config = QuantizationConfig(
        db, fuse, target.torch_name, told, policy=policy
    ).to_dict()
    config.transformers_weights = find_weights(folder).name
    open_folder(folder)
    # Of a model that also sees, transformers itself would only look in the text's part.
    dtype = dtype or getattr(config.get_text_config(), "dtype", None) or config.dtype
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype or "auto", output_loading_info=True, local_files_only=True
    )
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FormatError(f"{folder} has no tensor {missing[0]}{more}; download it again")
    return model.to(target.torch_name)


def _folder(path: str | Path) -> Path:
    """The folder, which holds nothing that opening could block on."""
    try:
        folder = Path(path).expanduser()
        found = sorted(folder.iterdir()) if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError) as error:
        raise FormatError(f"{str(path)!r} does not read: {error}") from None
    if found is None:
        raise FormatError(f"{folder} is not a folder; download the model and give the folder that holds it")
    for entry in found:
        if entry.exists() and not entry.is_dir():
            expect_file(entry)
    return folder


def _config(folder: Path) -> Any:
    """The config of the model, which transformers has a causal class for."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    file = folder / "config.json"
    model_type = read_json(file).get("model_type")
    if (folder / "generation_config.json").exists():
        read_json(folder / "generation_config.json")
    none = f"{file}: transformers has no causal model of model_type={model_type!r}"
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise FormatError(none)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Its classes raise what they like.
    except Exception as error:
        raise FormatError(f"{file}: transformers does not take it: {' '.join(str(error).split())}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise FormatError(none)
    return config


def _quantization(folder: Path) -> dict[str, Any]:
    """What the checkpoint says of its quantization, which can be read."""
    told = quantization_of(folder / "config.json")
    if told is None:
        raise FormatError(
            f"{folder / 'config.json'} has no quantization_config; only 4-bit checkpoints are loaded"
        )
    parse_quantization(told)
    return dict(told)
