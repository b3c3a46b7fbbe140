"""A family of one Python file and one CUDA source in a folder: a sweep, a look-up and a launch find it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest
from command_line import PROGRAM
from places import SUPPORT

from autotune.jit import compiler
from autotune.jit.building import build_all
from autotune.testing import CHECKS, GPUS, check_results
from autotune.values.layer import Layer

SHAPE = ("--shapes", "n=64,k=128", "--m", "1")
LAUNCH = """
import torch
from autotune import Int4Linear, Layer
from autotune.layouts import random_weight, reference_matmul

device = "cuda" if torch.cuda.is_available() else "cpu"
layer = Layer(n=64, k=128, group_size=128)
weight = random_weight(layer, torch.Generator(device).manual_seed(0))
bias = torch.randn(64, device=device).half()
linear = Int4Linear.from_quantized(weight, bias)
for shape in ((1, 128), (2, 3, 128), (0, 128)):
    x = torch.randn(shape, device=device).half()
    expected = reference_matmul(weight, x.view(-1, 128)).view(*shape[:-1], 64) + bias.float()
    torch.testing.assert_close(linear(x).float(), expected, rtol=2e-3, atol=2e-3)
assert {answer.config.family for answer in linear.plans.answers} == {"toy"}
print(linear.plans.answers[0].source)
"""


@pytest.fixture
def folder(tmp_path):
    """With the family in it, and nothing else."""
    return shutil.copytree(SUPPORT / "toy", tmp_path / "families")


@pytest.fixture
def module(folder):
    spec = importlib.util.spec_from_file_location("toy", folder / "toy.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def run(folder, *command, fails=False):
    environment = os.environ | {
        "AUTOTUNE_FAMILIES": str(folder),
        "AUTOTUNE_DB": str(folder.parent / "here.db"),
    }
    ended = subprocess.run(
        command, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == fails, ended.stderr
    return ended.stderr if fails else ended.stdout


def test_a_family_in_a_folder_is_swept_looked_up_and_launched(folder):
    (outcome,) = map(
        json.loads, run(folder, *PROGRAM, "sweep", *SHAPE, "--budget", "20s", "--json").splitlines()
    )
    assert outcome["config"].startswith("toy:rows=")
    (answer,) = json.loads(run(folder, *PROGRAM, "lookup", *SHAPE, "--json"))
    assert (answer["config"], answer["source"]) == (outcome["config"], "exact")
    assert run(folder, sys.executable, "-c", LAUNCH).split() == ["exact"]


def test_a_file_that_does_not_import_is_named(folder):
    (folder / "broken.py").write_text("raise ValueError('no such kernel')")
    said = run(folder, *PROGRAM, "lookup", *SHAPE, fails=True)
    assert said == "error: family file broken.py does not import: no such kernel\n"


def test_a_name_that_is_taken_is_refused(folder):
    text = (folder / "toy.py").read_text()
    (folder / "other.py").write_text(text)
    said = run(folder, *PROGRAM, "lookup", *SHAPE, fails=True)
    assert said == "error: family file toy.py brings the name toy, which is taken\n"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["TorchToy", "CudaToy"])
def test_the_toy_fulfils_what_any_family_must(module, name, check):
    check(getattr(module, name)())


@pytest.mark.gpu
def test_the_toy_is_right_on_a_gpu(module):
    check_results(module.CudaToy())


@pytest.mark.skipif(compiler.find_compiler() is None, reason="no CUDA compiler here")
def test_the_toy_compiles(module):
    family = module.CudaToy()
    units = [
        family.unit(family.config(64), Layer(n=64, k=128, group_size=group, dtype=dtype), device)
        for group, dtype, device in ((32, "fp16", GPUS[0]), (-1, "bf16", GPUS[1]))
    ]
    assert all(isinstance(cubin, bytes) for cubin in build_all(units).values())
