"""Workspaces: who gets which memory, and in what state."""

from __future__ import annotations

import threading

import pytest
import torch

from autotune.families.workspace import workspace

CPU = torch.device("cpu")


def fresh(function):
    """The function's result in a new thread, whose workspace nobody has used."""
    results: list = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def taken(bytes: int, device: torch.device = CPU) -> torch.Tensor:
    tensor = workspace(device, bytes)
    assert tensor is not None
    return tensor


def test_no_bytes_take_no_workspace() -> None:
    assert workspace(CPU, 0) is None


def test_a_workspace_is_zeroed_when_made_and_then_kept() -> None:
    def check() -> None:
        first = taken(1000)
        assert first.dtype == torch.uint8
        assert first.numel() >= 1000
        assert not first.any()
        first[7] = 1
        again = taken(100)
        assert again.data_ptr() == first.data_ptr()
        assert again[7] == 1

    fresh(check)


def test_a_workspace_that_is_too_small_at_least_doubles() -> None:
    def sizes() -> list[int]:
        taken(1000).fill_(1)
        grown = taken(1001)
        assert not grown.any()
        return [grown.numel(), taken(100_000).numel(), taken(5).numel()]

    assert fresh(sizes) == [2000, 100_000, 100_000]


def test_threads_do_not_share() -> None:
    mine = taken(64)
    theirs = fresh(lambda: taken(64))
    assert mine.data_ptr() != theirs.data_ptr()


def test_a_workspace_made_in_inference_mode_can_be_written_outside() -> None:
    def make() -> torch.Tensor:
        with torch.inference_mode():
            return taken(64)

    made = fresh(make)
    torch.mm(torch.eye(2), torch.eye(2), out=made[:16].view(torch.float32).view(2, 2))
    assert made.any()


@pytest.mark.gpu
def test_streams_do_not_share() -> None:
    device = torch.device("cuda:0")
    one, other = torch.cuda.Stream(device), torch.cuda.Stream(device)
    with torch.cuda.stream(one):
        first = taken(4096, device)
        assert taken(4096, device).data_ptr() == first.data_ptr()
    with torch.cuda.stream(other):
        second = taken(4096, device)
    torch.cuda.synchronize()
    assert first.device == second.device == device
    assert first.data_ptr() != second.data_ptr()


@pytest.mark.gpu
def test_a_captured_workspace_is_its_own_and_each_replay_zeroes_it() -> None:
    device = torch.device("cuda:0")
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        eager = taken(4096, device)
    found = torch.empty(4096, dtype=torch.uint8, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = taken(4096, device)
        found.copy_(captured[:4096])
        captured.fill_(7)
        shared = taken(1, device).data_ptr() == captured.data_ptr()
    assert shared
    assert captured.data_ptr() != eager.data_ptr()
    for _ in range(3):
        found.fill_(1)
        graph.replay()
        torch.cuda.synchronize()
        assert not found.any()
    with torch.cuda.stream(stream):
        assert taken(4096, device).data_ptr() == eager.data_ptr()


@pytest.mark.gpu
def test_two_captures_do_not_share_and_a_growing_one_stays_zeroed() -> None:
    device = torch.device("cuda:0")
    stream = torch.cuda.Stream(device)
    graphs = [torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()]
    found = [torch.ones(8192, dtype=torch.uint8, device=device) for _ in graphs]
    starts = []
    for graph, seen in zip(graphs, found, strict=True):
        with torch.cuda.graph(graph, stream=stream):
            small = taken(4096, device)
            small.fill_(7)
            large = taken(8192, device)
            seen.copy_(large[:8192])
            starts.append((small.data_ptr(), large.data_ptr()))
    assert not set(starts[0]) & set(starts[1])
    for graph in (*graphs, *graphs):
        graph.replay()
    torch.cuda.synchronize()
    assert not any(seen.any() for seen in found)


@pytest.mark.gpu
def test_no_memory_pool_of_the_thread_owns_a_workspace() -> None:
    device = torch.device("cuda:0")
    pool = torch.cuda.MemPool()
    with torch.cuda.stream(torch.cuda.Stream(device)), torch.cuda.use_mem_pool(pool):
        own = torch.empty(4096, dtype=torch.uint8, device=device)
        starts = [taken(bytes, device).data_ptr() for bytes in (1 << 20, 64 << 20)]
    segments = [range(at["address"], at["address"] + at["total_size"]) for at in pool.snapshot()]
    assert any(own.data_ptr() in segment for segment in segments)
    assert not any(start in segment for start in starts for segment in segments)
