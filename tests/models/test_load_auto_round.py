"""autotune.load of what auto-round and GPTQModel write, with zeros of 0, against the dequantized weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import packers
import pytest
import torch
from checkpoints import Kind, Tensors, logits, one_thread, prompt, quantize, rounded, tiny, write
from packers import Word, as_they_are, less_ones, summed

import autotune
from autotune.layouts import QuantizedWeight

pytestmark = [
    pytest.mark.usefixtures(one_thread.__name__),
    pytest.mark.filterwarnings("ignore:no config was measured"),
]
AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "data_type": "int", "sym": False}
GPTQMODEL = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "sym": False,
    "meta": {"quantizer": ["gptqmodel:7.7.0"]},
}


def gptq(word: Word) -> Any:
    return lambda weight, _: packers.gptq_with(weight, word)


def awq(weight: QuantizedWeight, _: torch.Tensor | None) -> Tensors:
    return packers.awq_gemm(weight)


def some_positive(model: Any) -> None:
    """Every fifth row has no negative weight, so that its zeros are 0, beside others in their words."""
    for name, parameter in model.named_parameters():
        if "_proj" in name:
            parameter.data[::5].abs_()
            assert int((rounded(parameter, True).zeros == 0).sum()) >= len(parameter) // 5


@pytest.mark.parametrize(
    ("packing", "pack", "symmetric"),
    [
        ("auto_round:auto_gptq", gptq(summed), False),
        ("auto_round:auto_gptq", gptq(less_ones), True),
        ("auto_round:gptqmodel", gptq(as_they_are), False),
        ("auto_round", gptq(as_they_are), True),
        ("auto_round:auto_awq", awq, False),
        ("auto_round:auto_awq", awq, True),
    ],
)
def test_auto_round(tmp_path: Path, packing: str, pack: Any, symmetric: bool) -> None:
    kind = Kind({**AUTO_ROUND, "packing_format": packing, "sym": symmetric}, pack, not symmetric)
    assert_loads(tmp_path, kind)


def test_gptqmodel(tmp_path: Path) -> None:
    assert_loads(tmp_path, Kind(GPTQMODEL, gptq(less_ones)))


def assert_loads(folder: Path, kind: Kind) -> None:
    reference = tiny()
    some_positive(reference)
    model = autotune.load(write(folder / "model", reference, quantize(reference, kind), kind.config), "cpu")
    torch.testing.assert_close(logits(model, prompt()), logits(reference, prompt()), rtol=1e-4, atol=1e-4)
