"""No checkpoint is written of a model with packed weights, whatever writes it and wherever it came from."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import logits, one_thread, prompt, stored, tiny
from packages import package
from runtime_tools import AwqLinear, weight_of
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import autotune
from autotune.models.apply import apply
from autotune.runtime.linear import Int4Linear
from autotune.values.errors import FormatError
from autotune.values.layer import Layer

pytestmark = [
    pytest.mark.usefixtures(one_thread.__name__),
    pytest.mark.filterwarnings("ignore:no config was measured"),
]


def quantized(source: Path) -> PreTrainedModel:
    """A model as another library loads it from the folder."""
    model = tiny("llama").half().eval()
    for name, linear in list(model.named_modules()):
        if isinstance(linear, torch.nn.Linear) and name != "lm_head":
            parent, _, child = name.rpartition(".")
            layer = Layer(linear.out_features, linear.in_features, group_size=32)
            setattr(model.get_submodule(parent), child, AwqLinear(weight_of(layer)))
    model.config._name_or_path = str(source)
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return stored(tmp_path / "source", tiny("llama"))


class Wrapper(torch.nn.Module):
    """What another library puts around a model, with a writer of its own."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(self.state_dict(), folder / "weights.pt")

    save_quantized = save_pretrained


class Outer(PreTrainedModel):
    """A model of transformers that is put around one with tuned linears."""

    config_class = LlamaConfig
    _supports_sdpa = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model.config)
        self.inner = model


def test_an_applied_model_is_not_written_over_its_source(source: Path) -> None:
    model, before = quantized(source), contents(source)
    apply(model)
    for write in (model.save_pretrained, model.model.save_pretrained, Outer(model).save_pretrained):
        for folder in (source, source.parent / "new"):
            with pytest.raises(FormatError, match=f"are packed for kernels.* copy {source} instead"):
                write(folder)
    for state in (model.state_dict(), {}):
        with pytest.raises(FormatError, match=f"copy {source} instead"):
            model.save_pretrained(source, state_dict=state)
    with pytest.raises(FormatError, match=f"copy {source} instead"):
        model.push_to_hub("nobody/nothing")
    assert contents(source) == before
    assert not (source.parent / "new").exists()


def test_the_model_around_an_applied_part_is_not_written_either(source: Path) -> None:
    model = quantized(source)
    apply(model.model.layers[0].mlp)
    with pytest.raises(FormatError, match=f"copy {source} instead"):
        model.save_pretrained(source.parent / "new")


def test_a_writer_of_another_library_refuses_too(source: Path) -> None:
    model = Wrapper(quantized(source).model.layers)
    model.save_pretrained(source.parent / "before")
    apply(model)
    for write in (model.save_pretrained, model.save_quantized):
        with pytest.raises(FormatError, match="copy the checkpoint that it was loaded from instead"):
            write(source.parent / "after")
    assert not (source.parent / "after").exists()


def test_a_loaded_model_is_not_written(source: Path) -> None:
    model, before = autotune.load(source, "cpu"), contents(source)
    with pytest.raises(FormatError, match=f"copy {source} instead"):
        model.save_pretrained(source)
    assert contents(source) == before


PICKLED = """
import pickle, sys
from pathlib import Path
model = pickle.loads(Path(sys.argv[1]).read_bytes())
try:
    model.save_pretrained(sys.argv[2])
except Exception as error:
    print(type(error).__name__)
"""


def test_copies_and_pickles_compute_the_same_and_refuse_too(source: Path) -> None:
    model, folder = quantized(source), source.parent / "new"
    apply(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin, prompt()), logits(model, prompt()))
        with pytest.raises(FormatError, match=f"copy {source} instead"):
            twin.save_pretrained(folder)
    (source.parent / "model.pickle").write_bytes(pickle.dumps(model))
    arguments = [sys.executable, "-c", PICKLED, str(source.parent / "model.pickle"), str(folder)]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=True, env=os.environ)
    assert run.stdout == "FormatError\n"
    assert not folder.exists()


def test_a_state_dict_goes_to_a_copy(source: Path) -> None:
    model = quantized(source)
    apply(model)
    twin = copy.deepcopy(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for module in twin.modules():
        if isinstance(module, Int4Linear):
            module.qweight.zero_()
    assert not torch.equal(logits(twin, prompt()), logits(model, prompt()))
    twin.load_state_dict(state)
    assert torch.equal(logits(twin, prompt()), logits(model, prompt()))


def test_other_models_are_written_as_before(source: Path) -> None:
    apply(quantized(source))
    model, folder = tiny("llama"), source.parent / "dense"
    model.save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(again, prompt()), logits(model.float(), prompt()))


def test_adapters_of_peft_are_written(source: Path) -> None:
    """It writes nothing else of the model."""
    peft = package("peft")
    model, folder = quantized(source), source.parent / "adapters"
    apply(model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["lm_head"]))
    wrapped.save_pretrained(folder)
    assert list(folder.glob("*.safetensors")) == [folder / "adapter_model.safetensors"]
    with pytest.raises(FormatError, match=f"copy {source} instead"):
        wrapped.get_base_model().save_pretrained(source.parent / "base")


def test_a_model_to_which_transformers_added_adapters_is_written(source: Path) -> None:
    """It writes the adapters only, and says so by this attribute."""
    model = Wrapper(quantized(source).model.layers)
    apply(model)
    model._hf_peft_config_loaded = True
    model.save_pretrained(source.parent / "adapters")
    assert (source.parent / "adapters").exists()
