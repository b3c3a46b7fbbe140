"""Warm-up: what runs, on whose tensors, and that nothing but time changes by it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from real_families import simplest_plan
from runtime_tools import store_records, tokens_of, weight_of

from autotune.bench.busy import keep_busy, settle
from autotune.families import registry
from autotune.models.warmup import warmup
from autotune.records.lookup import Lookup
from autotune.runtime.linear import Int4Linear
from autotune.values.device import cpu_device, find_device
from autotune.values.errors import DeviceError, LayerError
from autotune.values.layer import Layer, Problem

UP, DOWN = Layer(256, 128, group_size=64), Layer(128, 256, group_size=64)
Plan = type(simplest_plan(UP, cpu_device()))


@pytest.fixture
def lookup(tmp_path: Path) -> Lookup:
    """For UP 16 and 512 tokens have a config each, 1 token the default; for DOWN all share one."""
    device = cpu_device()
    choices = {}
    for layer, m, index in ((UP, 1, 0), (UP, 16, -1), (UP, 512, 1), *((DOWN, m, 0) for m in (1, 16, 512))):
        problem = Problem(layer, m)
        choices[problem] = registry.space(problem, device)[index]
    store_records(tmp_path / "some.db", device, choices)
    return Lookup(device, str(tmp_path / "some.db"))


@pytest.fixture
def model(lookup: Lookup) -> torch.nn.Sequential:
    pairs = [
        (UP, torch.linspace(-1, 1, 256).half()),
        (DOWN, None),
    ]
    linears = [
        Int4Linear.from_quantized(weight_of(layer, seed), bias, lookup=lookup)
        for seed, (layer, bias) in enumerate(pairs * 2)
    ]
    return torch.nn.Sequential(*linears).eval()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, int, int]]:
    """Every run of a plan so far: the plan, the tokens, and where the weight is."""
    seen = []
    launch = Plan.launch

    def seen_launch(self, m, x, qweight, *rest) -> None:
        seen.append((self, m, qweight))
        launch(self, m, x, qweight, *rest)

    monkeypatch.setattr(Plan, "launch", seen_launch)
    return seen


def test_every_kernel_runs_and_every_weight_is_read(model: torch.nn.Sequential, runs: list) -> None:
    report = warmup(model=model)
    wanted = {linear.plans.plan(m) for linear in model for m in (1, 16, 512)}
    assert {plan for plan, _, _ in runs} == wanted
    assert {pointer for _, _, pointer in runs} == {linear.qweight.data_ptr() for linear in model}
    assert (report.kernels, report.linears) == (len(wanted), 4)
    assert report.kernels == 4
    # Three numbers of tokens for the first linear of each layer, one for the others.
    assert len(runs) == 8


def test_tokens_are_covered_by_their_buckets(model: torch.nn.Sequential, runs: list) -> None:
    warmup(model=model, tokens=(3, 4, 9, 5000))
    first = [m for _, m, pointer in runs if pointer == model[0].qweight.data_ptr()]
    assert first == [5000, 16, 4]


def test_a_linear_under_two_names_runs_once(model: torch.nn.Sequential, runs: list) -> None:
    shared = torch.nn.ModuleList([model[0], model[0]])
    assert warmup(model=shared, tokens=[1]).linears == 1
    assert len(runs) == 1


def test_nothing_but_time_changes(model: torch.nn.Sequential) -> None:
    model.train()
    x = tokens_of((7, 128), torch.float16)
    with torch.no_grad():
        before = model(x)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    for _ in range(2):
        warmup("cpu", model)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert model.training
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(x), before)


def test_works_in_inference_mode(model: torch.nn.Sequential) -> None:
    with torch.inference_mode():
        assert warmup(model=model).linears == 4
    assert model(tokens_of((1, 128), torch.float16)).shape == (1, 128)


def test_hooks_see_no_call(model: torch.nn.Sequential) -> None:
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    warmup(model=model)
    assert calls == []


@pytest.mark.parametrize("model", [None, torch.nn.Linear(8, 8)])
def test_without_tuned_linears(model: torch.nn.Module | None) -> None:
    report = warmup("cpu", model)
    assert (report.devices, report.kernels, report.linears) == (("cpu",), 0, 0)


def test_report_is_one_line_of_every_part(model: torch.nn.Sequential) -> None:
    report = warmup(model=model)
    assert set(report.seconds) == {"context", "matmul", "kernels", "clock"}
    assert all(seconds > 0 for seconds in report.seconds.values())
    part = r"\w+ \d+\.\d{3} s"
    assert re.fullmatch(rf"warmed cpu: 4 kernels on 4 linears \({part}(, {part}){{3}}\)", str(report))


def test_no_tokens_run_no_kernel(model: torch.nn.Sequential) -> None:
    report = warmup(model=model, tokens=())
    assert (report.kernels, report.linears) == (0, 0)


def test_wrong_arguments_have_one_clear_error(model: torch.nn.Sequential) -> None:
    with pytest.raises(LayerError, match="m=0 is not a number of tokens"):
        warmup(model=model, tokens=(0, 1))
    with pytest.raises(DeviceError, match="'tpu' is not auto, cpu, cuda"):
        warmup("tpu", model)


def scripted(readings: Iterator[float | None]) -> tuple[list[float | None], Callable[[], float | None]]:
    """What was read so far, and a clock that reads one after the other."""
    read: list[float | None] = []

    def clock() -> float | None:
        read.append(next(readings))
        return read[-1]

    return read, clock


def test_busy_until_the_clock_is_steady() -> None:
    ramp = [345, 345, 900, 1500, 1900, 1960]
    read, clock = scripted(itertools.chain(ramp, itertools.repeat(1980)))
    keep_busy(cpu_device(), 60, clock)
    # 1960 is not within 1 % of 1980.
    assert read == [*ramp, *[1980] * 10]


def test_small_changes_of_the_clock_count_as_steady() -> None:
    read, clock = scripted(itertools.cycle([1980, 1965]))
    keep_busy(cpu_device(), 60, clock)
    assert len(read) == 10


def test_a_clock_that_never_settles_ends_at_the_limit() -> None:
    read, clock = scripted(itertools.cycle([1000, 2000]))
    assert keep_busy(cpu_device(), 0.2, clock) >= 0.2
    assert len(read) > 1


def test_without_a_clock_the_work_itself_is_read() -> None:
    read, clock = scripted(itertools.repeat(None))
    keep_busy(cpu_device(), 0.05, clock)
    assert read[0] is None
    assert keep_busy(cpu_device(), 0.05) > 0


def test_settle_on_a_cpu_is_a_short_run() -> None:
    random = torch.get_rng_state()
    assert settle(cpu_device()) > 0
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    device = find_device("cuda")
    lookup = Lookup(device, str(tmp_path / "none.db"))
    layers = (Layer(1024, 2048), Layer(2048, 1024))
    linears = [Int4Linear.from_quantized(weight_of(layer, device="cuda"), lookup=lookup) for layer in layers]
    model = torch.nn.Sequential(*linears, torch.nn.Linear(8, 8)).eval()
    x = tokens_of((3, 2048), torch.float16, device="cuda")
    before = linears[0](x)
    random = torch.cuda.get_rng_state()
    held = torch.cuda.memory_allocated()
    report = warmup("cuda:0", model)
    again = warmup(model=model)
    assert report.devices == again.devices == ("cuda:0",)
    assert report.linears == 2
    assert report.kernels == len({linear.plans.plan(m) for linear in linears for m in (1, 16, 512)})
    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert torch.equal(linears[0](x), before)
    # What stays is for the calls to come: kernels' and torch's workspaces.
    assert torch.cuda.memory_allocated() - held < 512 << 20
    assert settle(device, 1.0) > 0


@pytest.mark.gpu
def test_first_call_after_a_warm_up_reserves_nothing_on_its_stream() -> None:
    layer = Layer(1024, 2048)
    linear = Int4Linear.from_quantized(weight_of(layer, device="cuda"))
    x = tokens_of((16, 2048), torch.float16, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        warmup(model=linear, tokens=(1, 16))
        reserved = torch.cuda.memory_reserved()
        for m in (1, 16):
            linear(x[:m])
        assert torch.cuda.memory_reserved() == reserved


@pytest.mark.gpu
def test_a_named_device_leaves_linears_elsewhere_alone() -> None:
    linear = Int4Linear.from_quantized(weight_of(UP))
    report = warmup("cuda", linear)
    assert (report.devices, report.linears) == (("cuda:0",), 0)
