"""The kernels of several problems: what is compiled first, and when a problem can be tuned."""

from __future__ import annotations

import os

import counted
import pytest

from autotune.executors.local import LocalExecutor
from autotune.families import registry
from autotune.jit import building, compiler
from autotune.jit.unit import Unit
from autotune.search.sweep import sweep
from autotune.search.tune import compile_candidates
from autotune.store.store import Store
from autotune.values.device import cpu_device
from autotune.values.errors import CompileError
from autotune.values.layer import Layer, Problem

pytestmark = [
    pytest.mark.skipif(compiler.find_compiler() is None, reason="no CUDA compiler here"),
    pytest.mark.usefixtures("own_cache"),
]

SMALL, LARGE = (Layer(n=n, k=64, group_size=64) for n in (64, 128))
KERNEL = 'extern "C" __global__ void kernel() {}'


class Compiled(counted.Counted):
    """Needs of a compiler what `needs` says of a config and layer; the workers' families need none."""

    def __init__(self, needs):
        super().__init__("counted")
        self.needs = needs

    def unit(self, config, layer, device):  # noqa: ARG002
        source, value = self.needs(config, layer)
        return Unit(str(source), (("VALUE", value),), "sm_80")


@pytest.fixture
def family(monkeypatch):
    """Has the parent know one family, which needs what the test says."""

    def make(needs):
        monkeypatch.setattr(registry, "families", lambda: {"counted": Compiled(needs)})

    return make


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "kernel.cu"
    path.write_text(KERNEL)
    return path


def candidates(*problems):
    return {problem: registry.candidates(problem, cpu_device()) for problem in problems}


def test_a_problem_is_tuned_while_kernels_of_others_are_compiled(family, source, tmp_path):
    fifo = tmp_path / "later.cu"
    os.mkfifo(fifo)
    family(lambda _, layer: (fifo if layer == LARGE else source, 0))
    problems = [Problem(LARGE, 1), Problem(LARGE, 2), Problem(SMALL, 1)]
    with (
        Store.open(str(tmp_path / "sweep.db")) as store,
        LocalExecutor(cpu_device(), entry=counted.work, allow_busy=True) as executor,
    ):
        running = sweep(problems, store, [executor])
        first = next(running)
        fifo.write_text(KERNEL)
        rest = list(running)
        assert [first.problem, *(each.problem for each in rest)] == [Problem(SMALL, 1), *problems[:2]]
        assert [record.problem for record in store.records()] == sorted(problems)


def test_who_counts_can_end_it_with_the_rest_uncompiled(family, source, monkeypatch):
    monkeypatch.setattr(building, "usable_cpus", lambda: 1)
    family(lambda config, layer: (source, 100 * layer.n + config["calls"]))
    problems = [Problem(Layer(n=64 * number, k=64, group_size=64), 1) for number in range(1, 13)]
    seen = []

    def interrupt(stage, done, total):
        seen.append((stage, done, total))
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_candidates(candidates(*problems), cpu_device(), interrupt)
    assert seen[-1] == ("compile", 1, 3 * len(problems))
    assert len(list(compiler.cubin_cache().glob("*.cubin"))) < 3 * len(problems)


def test_few_tokens_come_first_then_the_least_to_compile(family, source, monkeypatch):
    monkeypatch.setattr(building, "usable_cpus", lambda: 1)

    def needs(config, layer):
        return source, 50 if config["calls"] == 50 else config["calls"] + layer.n * (layer == LARGE)

    middle = Layer(n=192, k=64, group_size=64)
    family(lambda config, layer: (source, 7) if layer == middle else needs(config, layer))
    chosen = candidates(Problem(LARGE, 1), Problem(SMALL, 2), Problem(middle, 1), Problem(SMALL, 1))
    ready = compile_candidates(chosen, cpu_device())
    assert {problem: len(cubins) for problem, cubins in ready.items()} == {
        problem: 1 if problem.layer == middle else 3 for problem in chosen
    }
    built = sorted(compiler.cubin_cache().glob("*.cubin"), key=lambda path: path.stat().st_mtime_ns)
    order = [Problem(middle, 1), Problem(LARGE, 1), Problem(SMALL, 1)]
    units = [_unit(config, problem) for problem in order for config in chosen[problem]]
    assert built == list(dict.fromkeys(map(compiler._cached_file, units)))


def _unit(config, problem):
    return registry.family_of(config).unit(config, problem.layer, cpu_device())


def test_a_kernel_that_does_not_compile_keeps_no_problem_back(family, source):
    family(lambda config, _: ("nowhere.cu" if config["calls"] == 1 else source, 0))
    found = {}
    chosen = candidates(Problem(SMALL, 1))
    compile_candidates(chosen, cpu_device(), on_ready=lambda problem, cubins: found.update({problem: cubins}))
    (cubins,) = found.values()
    assert sorted(isinstance(cubin, CompileError) for cubin in cubins.values()) == [False, True]
