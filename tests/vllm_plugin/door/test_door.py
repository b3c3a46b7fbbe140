"""Which linears autotune takes of vLLM, what it says of the others, and the names that it needs of vLLM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from asking import LAYER, config_of, start
from prometheus_client import generate_latest
from vllm import envs
from vllm.model_executor.kernels import linear as kernels
from vllm.model_executor.kernels.linear import MPLinearLayerConfig, choose_mp_linear_kernel
from vllm.platforms import PlatformEnum
from vllm.scalar_type import scalar_types

from autotune.serving import vllm as plugin
from autotune.serving.vllm import engine, metrics, report
from autotune.serving.vllm.kernel import AutotuneLinearKernel

NAME = AutotuneLinearKernel.__name__


def test_registering_twice_enters_once(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, "1")
    monkeypatch.setattr(plugin, "_done", False)  # as in a fork that registers again
    start(monkeypatch, "1")
    for platform in (PlatformEnum.CUDA, PlatformEnum.CPU):
        assert [kernel.__name__ for kernel in kernels._POSSIBLE_KERNELS[platform]].count(NAME) == 1
        assert kernels._POSSIBLE_KERNELS[platform][0] is AutotuneLinearKernel


_LATER = """
import sys, time
import vllm.engine.arg_utils
from autotune.serving.vllm import DOOR, register
before = set(sys.modules)
register()
assert DOOR not in sys.modules
assert not [name for name in set(sys.modules) - before if name.startswith(("vllm.", "torch."))]
from vllm.model_executor.kernels import linear
from vllm.platforms import PlatformEnum
print("first:", linear._POSSIBLE_KERNELS[PlatformEnum.CUDA][0].__name__)
"""


def test_a_process_that_runs_no_model_imports_no_kernels() -> None:
    """vLLM registers in its front end too, which answers the sooner."""
    ended = subprocess.run(
        [sys.executable, "-c", _LATER],
        env={**os.environ, plugin.VARIABLE: "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert f"first: {NAME}" in ended.stdout


def test_a_vllm_without_the_door_is_left_alone(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setattr(plugin, "DOOR", "vllm.model_executor.kernels.elsewhere")
    start(monkeypatch, "1")
    assert said == [
        "autotune: this vLLM is not known, it has no vllm.model_executor.kernels.elsewhere;"
        " vLLM's own kernels serve"
    ]


def test_off_leaves_vllm_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {platform: list(own) for platform, own in kernels._POSSIBLE_KERNELS.items()}
    start(monkeypatch, "0")
    assert before == kernels._POSSIBLE_KERNELS
    assert plugin.VARIABLE not in envs.environment_variables


def test_unset_takes_what_records_answer(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    start(monkeypatch, None)
    taken, reason = AutotuneLinearKernel.can_implement(config_of())
    assert not taken
    assert "sweep it with --serving" in str(reason)
    shape = f"n={LAYER.n},k={LAYER.k},group_size={LAYER.group_size}"
    assert said == [f"autotune leaves {shape} to vLLM: {reason}"]


def test_another_word_is_named(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    start(monkeypatch, "yes")
    assert said == ["autotune: AUTOTUNE_VLLM='yes' is not one of auto, 1, 0; vLLM's own kernels serve"]
    assert AutotuneLinearKernel not in kernels._POSSIBLE_KERNELS[PlatformEnum.CPU]


@pytest.mark.parametrize(
    ("break_it", "word"),
    [
        (lambda patch: patch.delattr(kernels, "_POSSIBLE_KERNELS"), "_POSSIBLE_KERNELS"),
        (
            lambda patch: patch.setattr(kernels.MPLinearKernel, "__init__", object.__init__),
            "MPLinearKernel takes self, args, kwargs",
        ),
        (
            lambda patch: patch.setattr(
                kernels.MPLinearKernel, "__abstractmethods__", frozenset({"can_implement", "run"})
            ),
            "asks for can_implement, run",
        ),
    ],
)
def test_a_door_that_changed_leaves_all_to_vllm(
    monkeypatch: pytest.MonkeyPatch, said: list[str], break_it: Any, word: str
) -> None:
    own = kernels._POSSIBLE_KERNELS
    break_it(monkeypatch)
    start(monkeypatch, "1")
    assert len(said) == 1
    assert said[0].startswith("autotune does not know this vLLM, whose own kernels serve")
    assert word in said[0]
    assert all(AutotuneLinearKernel not in listed for listed in own.values())
    assert plugin.VARIABLE not in envs.environment_variables


def test_one_takes_what_it_can(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    start(monkeypatch, "1")
    assert choose_mp_linear_kernel(config_of()) is AutotuneLinearKernel
    assert said == [f"autotune serves {LAYER}: default m=1-{engine.buckets()[-1]}"]


def test_vllm_can_disable_it(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, "1")
    kernels._POSSIBLE_KERNELS[PlatformEnum.CPU][1:] = [Willing]
    assert choose_mp_linear_kernel(config_of()) is AutotuneLinearKernel
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", NAME)
    monkeypatch.setattr(envs, "VLLM_DISABLED_KERNELS", [NAME], raising=False)
    assert choose_mp_linear_kernel(config_of()) is Willing


class Willing(kernels.MPLinearKernel):
    """A kernel that takes all; not every CPU has an int4 kernel of vLLM's own."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, None]:  # noqa: ARG003
        return True, None

    def process_weights_after_loading(self, layer: Any) -> None: ...

    def apply_weights(self, layer: Any, x: Any, bias: Any = None) -> Any: ...


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weight_type": scalar_types.uint4b8}, "weights are"),
        ({"weight_type": scalar_types.uint8b128, "zero_points": False}, "weights are"),
        ({"act_type": torch.float8_e4m3fn}, "activations are torch.float8_e4m3fn"),
        ({"act_type": torch.int8}, "activations are torch.int8"),
        ({"group_size": 16}, "group_size=16 is not one of"),
        ({"partition_weight_shape": (LAYER.k, 12)}, "n=12 is not a positive multiple of 8"),
        (
            {"partition_weight_shape": (96, LAYER.n), "group_size": 64},
            "k=96 is not a multiple of group_size=64",
        ),
    ],
)
def test_what_it_cannot_serve_is_left_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, said: list[str], changes: dict[str, Any], reason: str
) -> None:
    start(monkeypatch, "1")
    taken, why = AutotuneLinearKernel.can_implement(config_of(**changes))
    assert not taken
    assert reason in str(why)
    assert len(said) == 1
    assert said[0].startswith("autotune leaves")
    assert reason in said[0]


def test_who_may_do_more_than_multiply_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "asker", lambda: "compressed_tensors_wNa8")
    start(monkeypatch, "1")
    taken, reason = AutotuneLinearKernel.can_implement(config_of())
    assert not taken
    assert "compressed_tensors_wNa8 may do more" in str(reason)


def test_where_results_must_not_depend_on_the_batch_ours_do_not(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(envs, "VLLM_BATCH_INVARIANT", True, raising=False)
    start(monkeypatch, "1")
    assert AutotuneLinearKernel.can_implement(config_of())[0]
    assert "policy m=1-" in said[0]


def test_a_config_that_changed_leaves_all_to_vllm(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    fields = dict(MPLinearLayerConfig.__dataclass_fields__)
    fields["shape"] = fields.pop("partition_weight_shape")
    monkeypatch.setattr(MPLinearLayerConfig, "__dataclass_fields__", fields)
    start(monkeypatch, "1")
    assert "MPLinearLayerConfig has" in said[0]
    assert AutotuneLinearKernel not in kernels._POSSIBLE_KERNELS[PlatformEnum.CPU]


@pytest.mark.parametrize("show", [OSError("No space left on device"), ImportError("no prometheus_client")])
def test_trouble_with_metrics_costs_metrics_only(
    monkeypatch: pytest.MonkeyPatch, said: list[str], show: Exception
) -> None:
    def fail() -> None:
        raise show

    monkeypatch.setattr(metrics, "show", fail)
    start(monkeypatch, "1")
    assert said == [f"vLLM's metrics lack those of autotune: {show}"]
    assert kernels._POSSIBLE_KERNELS[PlatformEnum.CPU][0] is AutotuneLinearKernel


def test_each_program_shows_its_own_metrics() -> None:
    """A server that another one has started finds the variable of that one in its environment."""
    theirs = os.environ["AUTOTUNE_VLLM_REPORT"]
    metrics.show()
    assert os.environ["AUTOTUNE_VLLM_REPORT"] != theirs
    assert b"autotune_linears" in generate_latest(metrics.REGISTRY)


def test_an_order_of_columns_that_is_split_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(partition_weight_shape=(LAYER.k // 2, LAYER.n))
    config.has_g_idx = True
    start(monkeypatch, "1")
    taken, reason = AutotuneLinearKernel.can_implement(config)
    assert not taken
    assert "split over devices" in str(reason)


def test_whatever_goes_wrong_leaves_the_layer_to_vllm(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("no such thing")

    start(monkeypatch, "1")
    monkeypatch.setattr(engine, "device", broken)
    assert AutotuneLinearKernel.can_implement(config_of()) == (False, "RuntimeError: no such thing")
    assert "RuntimeError: no such thing" in said[0]


def test_a_compile_cache_tells_apart_what_was_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off, on, on with another layer, and another autotune, each have a key of their own."""
    keys = [envs.compile_factors()]
    start(monkeypatch, "1")
    AutotuneLinearKernel.can_implement(config_of())
    keys.append(envs.compile_factors())
    assert envs.compile_factors() == keys[1]
    AutotuneLinearKernel.can_implement(config_of(partition_weight_shape=(LAYER.k, 2 * LAYER.n)))
    keys.append(envs.compile_factors())
    monkeypatch.setattr(report, "__version__", "another")
    keys.append(envs.compile_factors())
    assert all(one != other for i, one in enumerate(keys) for other in keys[:i])


def test_metrics_show_what_was_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, "1")
    AutotuneLinearKernel.can_implement(config_of())
    in_use = [Willing(config_of(), "q", "s", "z") for _ in range(3)]
    for kernel in in_use:
        report.took(kernel, LAYER)
    del kernel, in_use[0]
    report.took(in_use[0], LAYER)  # loaded again
    folder = Path(os.environ["AUTOTUNE_VLLM_REPORT"])
    found = {
        (sample.name, sample.labels["layer"], sample.labels.get("source")): sample.value
        for metric in metrics.Collector(folder).collect()
        for sample in metric.samples
    }
    assert found["autotune_linears", str(LAYER), None] == 2
    assert found["autotune_answer", str(LAYER), "default"] == 1
