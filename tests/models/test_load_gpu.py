"""autotune.load on a GPU: its memory, and the same numbers as on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import FAST_AWQ, KINDS, logits, prompt, quantize, scaled, tiny, with_odd_head, write
from transformers import AutoModelForCausalLM

import autotune
from autotune.runtime.linear import Int4Linear
from autotune.values.errors import FormatError

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:no config was measured")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers as many as those of a 7B model, so that one of them is as small a part."""
    model = tiny(num_hidden_layers=32, hidden_size=512, intermediate_size=1024, head_dim=128)
    return write(
        tmp_path_factory.mktemp("model"), model, quantize(model, FAST_AWQ), FAST_AWQ.config, dtype="float16"
    )


def tolerance(expected: torch.Tensor) -> float:
    """What logits of fp16 models may differ by that round in other places."""
    return 64 * torch.finfo(torch.float16).eps * float(expected.abs().max())


def test_one_linear_at_a_time_is_unpacked(folder: Path) -> None:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model = autotune.load(folder, "cuda")
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cuda"}
    assert torch.cuda.max_memory_allocated() - before <= 1.15 * held


@pytest.mark.parametrize("fuse", [True, False])
def test_computes_as_on_the_cpu(folder: Path, fuse: bool) -> None:
    expected = logits(autotune.load(folder, "cpu", dtype=torch.float32), prompt())
    got = logits(autotune.load(folder, "cuda", fuse=fuse), prompt().cuda()).float().cpu()
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance(expected))


def test_from_pretrained(folder: Path) -> None:
    config = autotune.QuantizationConfig(device="cuda")
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).to("cuda")
    expected = logits(autotune.load(folder, "cuda"), prompt().cuda())
    assert torch.equal(logits(model, prompt().cuda()), expected)


@pytest.mark.filterwarnings("ignore:without a kernel")
def test_what_is_not_a_tuned_linear(tmp_path: Path) -> None:
    """A dense linear that no kernel takes, and scaled activations."""
    head, acts = tiny(vocab_size=131), tiny("starcoder2")
    folders = (
        write(tmp_path / "head", head, with_odd_head(head, "symmetric"), KINDS["symmetric"].config),
        write(tmp_path / "acts", acts, scaled(acts, "act", "c_proj"), KINDS["awq"].config),
    )
    for folder, reference in zip(folders, (head, acts), strict=True):
        model = autotune.load(folder, "cuda", dtype=torch.float16)
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cuda"}
        expected = logits(reference, prompt())
        got = logits(model, prompt().cuda()).float().cpu()
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance(expected))


def test_fused_linears_in_a_graph(folder: Path) -> None:
    """Parts share their product inside a capture as outside, and replays see the new x.

    Only our linears repeat bit for bit: in a capture transformers gives attention a mask, which picks another
    of torch's kernels.
    """
    model = autotune.load(folder, "cuda")
    linears = [module for module in model.modules() if isinstance(module, Int4Linear)]
    tokens = prompt().cuda()
    stream = torch.cuda.Stream()
    calls: list[tuple[Int4Linear, torch.Tensor, torch.Tensor]] = []
    with torch.no_grad(), torch.cuda.stream(stream):
        # The first call on a stream makes its workspace, which is no part of a graph.
        model(tokens, use_cache=False)
        hooks = [
            linear.register_forward_hook(lambda module, inputs, out: calls.append((module, *inputs, out)))
            for linear in linears
        ]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = model(tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    torch.cuda.synchronize()
    assert len(calls) == len(linears) == len({linear for linear, _, _ in calls})
    for other in (prompt(), prompt().flip(0)):
        tokens.copy_(other)
        graph.replay()
        expected = logits(model, other.cuda())
        torch.testing.assert_close(captured, expected, rtol=0, atol=tolerance(expected))
        assert all(torch.equal(out, linear(x)) for linear, x, out in calls)


def test_fp32_is_for_the_cpu(folder: Path) -> None:
    with pytest.raises(FormatError, match=r"dtype=torch.float32 on cuda:0; give dtype= one of"):
        autotune.load(folder, "cuda", dtype=torch.float32)
