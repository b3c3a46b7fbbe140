"""Whole engines, each scenario in a process of its own: python engines.py SCENARIO FOLDER OUT."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import prometheus_client
import torch
from vllm import LLM, SamplingParams, envs
from vllm.lora.request import LoRARequest
from vllm.model_executor.kernels import linear as kernels
from vllm.platforms import current_platform

from autotune.runtime.plans import LayerPlans
from autotune.serving.vllm import VARIABLE, report
from autotune.serving.vllm.kernel import AutotuneLinearKernel

PROMPTS = [[(7 * row + column) % 128 for column in range(9)] for row in range(3)]
TOKENS = 12
_make_plans = LayerPlans.__init__


def engine(folder: Path, **options: Any) -> LLM:
    """An engine that is ready for requests: from then on, making plans of a layer is an error."""
    sizes = {"max_model_len": 64, "max_num_seqs": 4, "max_num_batched_tokens": 64}
    memory = {"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": 1 << 28}
    LayerPlans.__init__ = _make_plans  # type: ignore[method-assign]
    llm = LLM(str(folder), skip_tokenizer_init=True, dtype="float16", **sizes, **memory, **options)
    LayerPlans.__init__ = _refuse  # type: ignore[method-assign]
    return llm


def _refuse(*_: Any) -> None:
    raise AssertionError("plans were made while serving")


def tokens(llm: LLM, lora: LoRARequest | None = None) -> list[list[int]]:
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, detokenize=False, ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    done = llm.generate(prompts, sampling, lora_request=lora, use_tqdm=False)
    return [list(each.outputs[0].token_ids) for each in done]


def kernels_of(llm: LLM) -> list[str]:
    """The classes of the kernels that serve the model's linears."""
    return sorted({name for names in llm.apply_model(_kernel_names) for name in names})


def _kernel_names(model: torch.nn.Module) -> list[str]:
    methods = (getattr(module, "quant_method", None) for module in model.modules())
    return [type(method.kernel).__name__ for method in methods if hasattr(method, "kernel")]


def eager(folder: Path) -> dict[str, Any]:
    """Tokens, the kernels, the metrics, and the tokens with an adapter."""
    llm = engine(folder / "model", enforce_eager=True, enable_lora=True, max_lora_rank=8)
    found: dict[str, Any] = {"tokens": tokens(llm), "kernels": kernels_of(llm)}
    found["metrics"] = prometheus_client.generate_latest().decode()
    found["adapter"] = tokens(llm, LoRARequest("adapter", 1, str(folder / "adapter")))
    return found


def reload(folder: Path) -> dict[str, Any]:
    """Tokens before, after the same weights were loaded again, and after those of another checkpoint were."""
    llm = engine(folder / "model", enforce_eager=True)
    found: dict[str, Any] = {"tokens": tokens(llm)}
    llm.collective_rpc("reload_weights")
    found["again"] = tokens(llm)
    llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder / "other")})
    found["other"] = tokens(llm)
    found["kernels"] = kernels_of(llm)
    return found


def caches(folder: Path) -> dict[str, Any]:
    """Compiled engines with one cache folder: with the plugin, without, and with it again."""
    found: dict[str, Any] = {}
    for name in ("on", "off", "on again"):
        _switch(name != "off")
        llm = engine(folder / "model")
        found[name] = {"tokens": tokens(llm), "kernels": kernels_of(llm), "cached": cached()}
        del llm
        gc.collect()
    return found


def cached() -> list[str]:
    """The names of the graphs in the cache; a name is the key of all that went into a graph."""
    folder = Path(envs.VLLM_CACHE_ROOT, "torch_compile_cache", "torch_aot_compile")
    return sorted(each.name for each in folder.iterdir())


def warm(folder: Path) -> dict[str, Any]:
    """Tokens of a compiled engine, whose graphs another process has put into the cache."""
    llm = engine(folder / "model")
    return {"tokens": tokens(llm), "kernels": kernels_of(llm), "cached": cached()}


def graphs(folder: Path) -> dict[str, Any]:
    """Tokens without graphs, with graphs of the parts between attention, and with graphs of whole steps."""
    modes = {"piecewise": "PIECEWISE", "full": "FULL_AND_PIECEWISE"}
    options: dict[str, dict[str, Any]] = {"eager": {"enforce_eager": True}}
    options |= {name: {"compilation_config": {"cudagraph_mode": mode}} for name, mode in modes.items()}
    found = {}
    for name, chosen in options.items():
        llm = engine(folder / "model", **chosen)
        found[name] = tokens(llm)
        del llm
        gc.collect()
    return found


def sleep(folder: Path) -> dict[str, Any]:
    """Tokens before and after sleeping, with the weights kept and with the weights loaded again."""
    llm = engine(folder / "model", enable_sleep_mode=True)
    found = {"before": tokens(llm)}
    llm.sleep(level=1)
    llm.wake_up()
    found["level 1"] = tokens(llm)
    llm.sleep(level=2)
    llm.wake_up(tags=["weights"])
    llm.collective_rpc("reload_weights")
    llm.wake_up(tags=["kv_cache"])
    found["level 2"] = tokens(llm)
    return found


def _switch(on: bool) -> None:
    """As in a process that was started with the plugin, or without: then a plain kernel serves."""
    own = kernels._POSSIBLE_KERNELS[current_platform._enum]
    if on:
        own[:] = [AutotuneLinearKernel]
        envs.environment_variables[VARIABLE] = report.digest
    else:
        own[:] = [PlainKernel]
        del envs.environment_variables[VARIABLE]


class PlainKernel(kernels.MPLinearKernel):
    """What AWQ means, by torch; not every CPU has an int4 kernel of vLLM's own."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, None]:  # noqa: ARG003
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        for name in (self.w_q_name, self.w_s_name, self.w_zp_name):
            kept = torch.nn.Parameter(getattr(layer, name).data, requires_grad=False)
            delattr(layer, name)
            layer.register_parameter(name, kept)

    def apply_weights(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=x.device)
        q = (getattr(layer, self.w_q_name)[:, None] >> shifts[None, :, None]) & 15  # [k/8, 8, n]
        zeros = (getattr(layer, self.w_zp_name)[:, None] >> shifts[None, :, None]) & 15  # [n/8, 8, groups]
        scales = getattr(layer, self.w_s_name)  # [groups, n]
        groups, n = scales.shape
        whole = q.reshape(groups, -1, n) - zeros.reshape(n, groups).T[:, None]
        weight = (whole.to(x.dtype) * scales[:, None]).view(-1, n)
        return x @ weight if bias is None else x @ weight + bias


if __name__ == "__main__":
    scenarios = {
        "eager": eager,
        "reload": reload,
        "caches": caches,
        "warm": warm,
        "graphs": graphs,
        "sleep": sleep,
    }
    scenario = scenarios[sys.argv[1]]
    Path(sys.argv[3]).write_text(json.dumps(scenario(Path(sys.argv[2]))))
