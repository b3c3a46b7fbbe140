"""apply on models of AutoAWQ-style linears, on the CPU family."""

from __future__ import annotations

import shlex
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from real_families import CPU_FAMILY
from runtime_tools import AwqLinear, assert_is_linear, store_records, tokens_of, weight_of

from autotune.checkpoints.shapes import parse_shapes
from autotune.families import registry
from autotune.models.apply import apply
from autotune.models.report import LayerReport, Report
from autotune.records.lookup import Answer
from autotune.runtime.linear import Int4Linear
from autotune.values.config import Config
from autotune.values.device import cpu_device
from autotune.values.errors import DeviceError, FormatError
from autotune.values.layer import COARSE, Layer, Problem

UP, DOWN = Layer(256, 128, group_size=64), Layer(128, 256, group_size=64)
BIAS = torch.linspace(-1, 1, 256).half()


class Block(torch.nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.up = AwqLinear(weight_of(UP, seed), BIAS)
        self.mlp = torch.nn.ModuleDict({"down": AwqLinear(weight_of(DOWN, seed + 1))})
        self.norm = torch.nn.LayerNorm(128, dtype=torch.float16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.mlp["down"](torch.relu(self.up(x))))


def model_of(blocks: int = 2) -> torch.nn.Sequential:
    return torch.nn.Sequential(*(Block(2 * i) for i in range(blocks))).eval()


@pytest.fixture
def empty(tmp_path: Path) -> str:
    return str(tmp_path / "none.db")


@pytest.fixture
def full(tmp_path: Path) -> str:
    """A database with a record for every problem of the model."""
    device, path = cpu_device(), tmp_path / "full.db"
    problems = [Problem(layer, bucket) for layer in (UP, DOWN) for bucket in COARSE]
    store_records(path, device, {problem: registry.space(problem, device)[0] for problem in problems})
    return str(path)


def quiet_apply(model: torch.nn.Module, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return apply(model, **options)


def test_linears_are_swapped_in_place_and_compute_the_same(empty: str) -> None:
    model = model_of()
    old = model[0].mlp["down"]
    x = tokens_of((2, 3, 128), torch.float16)
    with torch.no_grad():
        before = model(x)
        report = quiet_apply(model, db=empty)
        after = model(x)
    assert report.applied == ("0.up", "1.up", "0.mlp.down", "1.mlp.down")
    assert not any(isinstance(module, AwqLinear) for module in model.modules())
    assert isinstance(model[0].norm, torch.nn.LayerNorm)
    assert not model[0].up.training
    # The two differ by a few roundings of the linears, which the norm keeps near unit size.
    torch.testing.assert_close(after, before, rtol=0, atol=64 * 2.0**-11)
    y = tokens_of((5, 256), torch.float16)
    assert_is_linear(model[0].mlp["down"](y), weight_of(DOWN, 1), y)
    assert_is_linear(model[1].up(x), weight_of(UP, 2), x, BIAS)
    assert isinstance(old, AwqLinear)


def test_old_tensors_are_freed(empty: str) -> None:
    model = model_of()
    names = ("qweight", "qzeros", "scales")
    old = [
        weakref.ref(getattr(m, name)) for m in model.modules() if isinstance(m, AwqLinear) for name in names
    ]
    quiet_apply(model, db=empty)
    assert len(old) == 12
    assert all(tensor() is None for tensor in old)


def test_report_of_a_model_without_records(empty: str) -> None:
    report = quiet_apply(model_of(), db=empty)
    assert [layer.layer for layer in report.layers] == [UP, DOWN]
    assert [layer.names for layer in report.layers] == [("0.up", "1.up"), ("0.mlp.down", "1.mlp.down")]
    assert [a.problem for a in report.layers[0].answers] == [Problem(UP, bucket) for bucket in COARSE]
    assert (report.hit, report.predicted, report.default) == (0, 0, 2 * len(COARSE))
    assert report.coverage == 0.0
    assert report.untuned == report.layers
    assert report.skipped == {}
    assert report.repack_s > 0
    assert report.plans_s > 0


def test_report_of_a_tuned_model_and_no_warning(full: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = apply(model_of(), db=full)
    assert (report.hit, report.predicted, report.default) == (2 * len(COARSE), 0, 0)
    assert report.coverage == 1.0
    assert report.untuned == ()


def test_report_of_a_model_that_is_tuned_in_part(tmp_path: Path) -> None:
    """One bucket of one layer: that layer needs no warning."""
    path, device = tmp_path / "part.db", cpu_device()
    problem = Problem(UP, 16)
    store_records(path, device, {problem: registry.space(problem, device)[0]})
    with pytest.warns(UserWarning, match="2 linears") as caught:
        report = apply(model_of(), db=str(path))
    assert len(caught) == 1
    assert str(DOWN) in str(caught[0].message)
    assert str(UP) not in str(caught[0].message)
    assert report.hit == 1
    assert (report.hit, report.predicted, report.default) == (1, 0, 2 * len(COARSE) - 1)
    assert report.coverage == 1 / (2 * len(COARSE))
    assert [layer.layer for layer in report.untuned] == [DOWN]


def test_the_warning_is_one_and_its_command_names_every_untuned_layer(empty: str) -> None:
    with pytest.warns(UserWarning, match="no config was measured") as caught:
        apply(model_of(), db=empty)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    command = shlex.split(str(caught[0].message).partition(": ")[2])
    assert command[:3] == ["autotune", "sweep", "--shapes"]
    assert [shape.layer for shape in parse_shapes(command[3])] == [UP, DOWN]
    assert command[4:] == ["--device", "cpu", "--db", empty]


def test_the_text_of_the_report(full: str) -> None:
    model = model_of(3)
    model.append(torch.nn.Module())
    model[3].register_buffer("qweight", torch.zeros(8, dtype=torch.int32))
    report = apply(model, db=full)
    lines = str(report).splitlines()
    assert lines[0].startswith("6 linears swapped, 2 layers, 2 tuned (")
    assert lines[1] == "100% of layer x bucket from records: 26 hit, 0 predicted, 0 default"
    config = report.layers[1].answers[0].config
    assert lines[2:5] == ["", f"3 x {UP}", "  on cpu: 13 exact"]
    assert lines[8:10] == [f"3 x {DOWN}", "  on cpu: 13 exact"]
    assert lines[11].split() == [">=1", str(config), "5.0", "1.40x"]
    assert lines[12:] == ["", "skipped 1: has no number w_bit or bits; only int4 linears are tuned (3)"]


def test_the_report_folds_runs_of_buckets(tmp_path: Path) -> None:
    """One config measured for m = 8 and 16; for the others the default is used."""
    path, device = tmp_path / "part.db", cpu_device()
    config = registry.space(Problem(UP, 16), device)[0]
    store_records(path, device, {Problem(UP, m): config for m in (8, 16)})
    report = quiet_apply(model_of(1), db=str(path))
    lines = str(report).splitlines()
    assert lines[3] == f"1 x {UP}"
    assert {"2 exact", "11 default"} == set(lines[4].partition(": ")[2].split(", "))
    rows = [line.split() for line in lines[6 : lines.index("", 6)]]
    assert ["8-16", str(config), "5.0", "1.40x"] in rows
    assert rows[-1][0].startswith(">=")
    assert [row[-1] for row in rows].count("default") == len(rows) - 1


def test_the_report_is_no_wider_than_100_columns() -> None:
    config = Config.parse("gem:tile_m=32,tile_n=128,warps=16,warps_k=16,loads=2,split_k=64")
    layer = Layer(22016, 11008, group_size=128, dtype="bf16", zero_point=False)
    times = [(1000.0 + m, 1100.0 + 2 * m) for m in COARSE]
    answers = [
        Answer(Problem(layer, m), "NVIDIA H200", config, "exact", *time, None, "")
        for m, time in zip(COARSE, times, strict=True)
    ]
    # 1024 to 2048 is the widest run but the last.
    answers[-1] = replace(answers[-1], source="default", median_us=None, default_us=None)
    answers[:10] = [
        replace(answer, source="predicted", median_us=None, default_us=None) for answer in answers[:10]
    ]
    report = Report((LayerReport(layer, "cuda:0", ("a",) * 100, tuple(answers)),), {}, 12.0, 1.0)
    lines = str(report).splitlines()
    assert "1024-2048" in str(report)
    assert max(map(len, lines)) <= 100


def test_again_changes_nothing(empty: str) -> None:
    model = model_of()
    quiet_apply(model, db=empty)
    modules = list(model.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = apply(model, db=empty)
    assert report.applied == ()
    assert len(report.skipped) == 4
    assert set(report.skipped.values()) == {"is an Int4Linear already"}
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert "skipped 4: is an Int4Linear already (0.up, 0.mlp.down, 1.up and 1 more)" in str(report)


def test_a_shared_module_is_swapped_once_everywhere(empty: str) -> None:
    model = model_of()
    model[1].up = model[0].up
    report = quiet_apply(model, db=empty)
    assert isinstance(model[0].up, Int4Linear)
    assert model[1].up is model[0].up
    assert report.applied == ("0.up", "1.up", "0.mlp.down", "1.mlp.down")


def skewed(**attributes: object) -> AwqLinear:
    linear = AwqLinear(weight_of(UP))
    for name, value in attributes.items():
        setattr(linear, name, value)
    return linear


def test_what_is_not_int4_gemm_is_left_alone_and_says_why(empty: str) -> None:
    scales = weight_of(UP).scales
    no_bits = skewed()
    del no_bits.w_bit
    model = torch.nn.ModuleDict(
        {
            "eight_bits": skewed(w_bit=8),
            "no_bits": no_bits,
            "gptq": skewed(g_idx=torch.zeros(128, dtype=torch.int32)),
            "no_zeros": skewed(qzeros=None),
            "gemv": skewed(qweight=torch.zeros(256, 16, dtype=torch.int32)),
            "lying": skewed(in_features=64),
            "nan": skewed(scales=scales.clone().index_fill_(0, torch.tensor([1]), torch.nan)),
            "good": skewed(bits=4, g_idx=None),
        }
    )
    kept = {name: module for name, module in model.items() if name != "good"}
    report = quiet_apply(model, db=empty)
    assert report.applied == ("good",)
    assert isinstance(model["good"], Int4Linear)
    assert all(model[name] is module for name, module in kept.items())
    expected = {
        "eight_bits": "bits=8",
        "no_bits": "no number w_bit or bits",
        "gptq": "g_idx is torch.int32 [128], but qweight [128, 32] is not in the GPTQ layout",
        "no_zeros": "no tensor qzeros",
        "gemv": "qweight torch.int32 [256, 16] with scales torch.float16 [2, 256] is no known layout",
        "lying": "no known layout of n=256, k=64",
        "nan": "256 of 512 scales are NaN",
    }
    assert {name: text in report.skipped[name] for name, text in expected.items()} == dict.fromkeys(
        kept, True
    )


def test_a_model_on_the_meta_device_and_a_bare_linear_are_skipped(empty: str) -> None:
    report = apply(model_of(1).to("meta"), db=empty)
    assert all("meta device" in reason for reason in report.skipped.values())
    assert len(report.skipped) == 2
    bare = skewed()
    report = quiet_apply(bare, db=empty)
    assert "is the model itself" in report.skipped[""]
    assert isinstance(bare.qweight, torch.Tensor)


@pytest.mark.parametrize("model", [None, "path/to/checkpoint"])
def test_what_is_no_model_is_an_error(model: object) -> None:
    with pytest.raises(FormatError, match=rf"not {type(model).__name__}; load takes a folder$"):
        apply(model)


@pytest.mark.parametrize(("name", "reason"), [("Linear4bit", "NF4"), ("Linear8bitLt", "8 bits")])
def test_linears_of_bitsandbytes_stay_and_the_report_says_why(name: str, reason: str, empty: str) -> None:
    """Their weight is uint8 codes or int8, in a tensor of the name that a dense linear's has."""
    theirs = type(name, (torch.nn.Linear,), {})(64, 64)
    theirs.weight = torch.nn.Parameter(torch.zeros(64 * 32, 1, dtype=torch.uint8), requires_grad=False)
    report = apply(torch.nn.Sequential(theirs), db=empty)
    assert not report.applied
    assert reason in report.skipped["0"]


def test_a_layer_that_no_kernel_can_do_keeps_its_tensors(monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    class OnlyUp(type(CPU_FAMILY)):
        def default(self, problem, device):
            return super().default(problem, device) if problem.layer == UP else None

    monkeypatch.setattr(registry, "families", lambda: {CPU_FAMILY.name: OnlyUp()})
    model = model_of(2)
    down = model[0].mlp["down"]
    match = "left alone: 2 int4 linears; the first: no kernel family"
    with pytest.warns(UserWarning, match="no config was measured"), pytest.warns(UserWarning, match=match):
        report = apply(model, db=empty)
    assert report.applied == ("0.up", "1.up")
    assert "no kernel family" in report.skipped["0.mlp.down"]
    assert model[0].mlp["down"] is down


@pytest.mark.parametrize("content", [b"this is not a database", b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_corrupt_database_does_not_stop_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "corrupt.db"
    path.write_bytes(content)
    model = model_of()
    with pytest.warns(UserWarning, match=r"corrupt\.db"):
        report = apply(model, db=str(path))
    assert len(report.applied) == 4
    assert report.default == 2 * len(COARSE)


def test_a_device_can_be_asked_for_and_a_wrong_one_changes_nothing(empty: str) -> None:
    model = model_of()
    with pytest.raises(DeviceError, match="'gpu'"):
        apply(model, db=empty, device="gpu")
    assert isinstance(model[0].up, AwqLinear)
    assert len(quiet_apply(model, db=empty, device="cpu").applied) == 4
