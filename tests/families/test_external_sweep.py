"""A kernel of one's own from the command line to a module: swept, stored, looked up, applied, kept apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from command_line import autotune
from external_kernels import BUG, CRASH, FAST, RIGHT, WRONG, repeating, with_its_own_layout
from places import SUPPORT
from real_families import CPU_FAMILY

from autotune.layouts import random_weight, reference_matmul
from autotune.records.lookup import Lookup
from autotune.runtime.linear import Int4Linear
from autotune.store.store import Store
from autotune.values.config import Config
from autotune.values.device import cpu_device
from autotune.values.layer import Layer, Problem

LAYER = Layer(256, 256)
SHAPE = ("--shapes", "n=256,k=256", "--device", "cpu", "--budget", "60s", "--db", "here.db", "--json")
OURS = ("--m", "1", "--budget", "4s")


def swept(folder: Path, *arguments: str) -> list[dict[str, object]]:
    ended = autotune("sweep", *SHAPE, *arguments, cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_from_sweep_to_module(tmp_path):
    outcomes = swept(tmp_path, "--m", "1,4", "--kernel", f"{SUPPORT}/external_kernels.py:repeating")
    assert {outcome["config"] for outcome in outcomes} == {"repeating:repeats=1"}
    assert {outcome["default_config"] for outcome in outcomes} == {"repeating:repeats=20"}
    db = str(tmp_path / "here.db")
    answer = repeating.best(LAYER, 3, db=db)
    assert (answer.config, answer.source) == (Config.of("repeating", repeats=1), "exact")
    assert answer.record.source_hash == repeating.source_hash()
    assert answer.median_us < answer.default_us
    assert repeating.best(Layer(2048, 2048), 1, db=db).config == Config.of("repeating", repeats=20)

    weight = random_weight(LAYER, torch.Generator().manual_seed(0))
    bias = torch.randn(LAYER.n).half()
    linear = repeating.linear(weight, bias, lookup=repeating.lookup(db=db))
    assert "repeating:repeats=1" in repr(linear)
    model = torch.nn.Sequential(linear)
    for shape in ((1, 256), (2, 3, 256), (40, 256), (0, 256)):
        x = torch.randn(shape).half()
        expected = reference_matmul(weight, x.view(-1, 256)).view(*shape[:-1], 256) + bias.float()
        torch.testing.assert_close(model(x).float(), expected, rtol=2e-3, atol=2e-3)


def test_its_records_and_ours_share_a_database_and_never_meet(tmp_path):
    kernel = ("--m", "1", "--kernel", f"{SUPPORT}/external_kernels.py:repeating")
    swept(tmp_path, *kernel)
    db = str(tmp_path / "here.db")
    other = with_its_own_layout.best(LAYER, 1, db=db)
    assert other.reason == "no record of this problem, and nothing predicts one"
    ours = Lookup(cpu_device(), db).answer(Problem(LAYER, 1))
    assert (ours.config.family, ours.source) == (CPU_FAMILY.name, "default")
    assert ours.reason == "no record of this problem, and nothing predicts one"
    weight = random_weight(LAYER, torch.Generator().manual_seed(0))
    linear = Int4Linear.from_quantized(weight, lookup=Lookup(cpu_device(), db))
    assert {answer.config.family for answer in linear.plans.answers} == {CPU_FAMILY.name}

    (own,) = swept(tmp_path, *OURS)
    assert str(own["config"]).startswith(f"{CPU_FAMILY.name}:")
    assert not own["resumed"]
    (again,) = swept(tmp_path, *kernel)
    assert (again["resumed"], again["config"]) == (True, "repeating:repeats=1")
    with Store.open(db) as store:
        assert {record.config.family for record in store.records()} == {CPU_FAMILY.name, "repeating"}
    assert Lookup(cpu_device(), db).answer(Problem(LAYER, 1)).config == Config.parse(str(own["config"]))
    assert repeating.best(LAYER, 1, db=db).config.family == "repeating"

    rechecked = swept(tmp_path, *kernel, "--recheck")
    assert [(each["verdict"], each["after"]["config"]) for each in rechecked] == [
        ("kept", "repeating:repeats=1")
    ]


def test_a_changed_file_is_measured_again_and_nothing_else_is(tmp_path):
    for name in ("external_kernels.py", "other_module.py"):
        shutil.copy(SUPPORT / name, tmp_path)
    kernel = ("--m", "1", "--kernel", "external_kernels.py:repeating")
    swept(tmp_path, *OURS)
    swept(tmp_path, *kernel)
    with (tmp_path / "external_kernels.py").open("a") as source:
        source.write("# Faster now.\n")
    (changed,) = swept(tmp_path, *kernel)
    assert (changed["resumed"], changed["trials"]) == (False, 2)
    (ours,) = swept(tmp_path, *OURS)
    assert ours["resumed"]


def test_what_goes_wrong_is_a_trial_and_the_rest_goes_on(tmp_path):
    problem = Problem(LAYER, 2)
    reference = f"{SUPPORT}/external_kernels.py:troubled"
    (outcome,) = swept(tmp_path, "--m", "2", "--kernel", reference)
    with Store.open(str(tmp_path / "here.db")) as store:
        trials = {trial.config["act"]: trial for trial in store.trials(problem, cpu_device())}
    assert outcome["config"] == str(Config.of("troubled", act=FAST))
    statuses = {act: trial.status for act, trial in trials.items()}
    assert statuses == {RIGHT: "ok", FAST: "ok", WRONG: "wrong", CRASH: "failed", BUG: "failed"}
    assert "signal 11" in trials[CRASH].error
    assert trials[BUG].error == "it raised KeyError: 'no such tile'"
    assert "expected" in trials[WRONG].error


def test_a_kernel_that_is_never_right_gets_no_record(tmp_path):
    ended = autotune(
        "sweep", *SHAPE, "--m", "1", "--kernel", f"{SUPPORT}/external_kernels.py:hopeless", cwd=tmp_path
    )
    assert ended.returncode == 1
    assert "no problem has a record; the first: no config passed" in ended.stderr
    assert json.loads(ended.stdout)["config"] is None


def test_problems_that_it_cannot_do_are_left_out(tmp_path):
    kernel = f"{SUPPORT}/external_kernels.py:with_its_own_layout"
    ended = autotune("sweep", *SHAPE, "--m", "4,8", "--kernel", kernel, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    (outcome,) = map(json.loads, ended.stdout.splitlines())
    assert outcome["m"] == 4
    assert outcome["default_config"] == "packed:parts=1"  # 3 parts, the first value, do not divide n
    assert "leaves out 1 of 2 problems; the first: m=8," in ended.stderr
    assert "m=8 is more than 4" in ended.stderr
    ended = autotune("sweep", *SHAPE, "--m", "8", "--kernel", kernel, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.count("leaves out 1 of 1 problem;") == 1
