from collections.abc import Sequence
from typing import Any

def cpu_arch() -> str: ...
def cpu_pin(cpus: Sequence[int]) -> None: ...
def cpu_source_hash() -> str: ...
def cpu_matmul(
    n: int,
    k: int,
    group_size: int,
    dtype: int,
    split_k: int,
    tile_n: int,
    unpack_m: int,
    threads: int,
    m: int,
    x: int,
    qweight: int,
    scales: int,
    zeros: int,
    bias: int,
    out: int,
    /,
) -> None: ...
def cuda_devices() -> list[dict[str, Any]]: ...
def cuda_unavailable_reason() -> str: ...
def cuda_driver_version() -> str | None: ...
def cuda_capture_id(stream: int) -> int | None: ...

class DequantMatmul:
    MATMUL_BYTES: int

    def __init__(
        self,
        cubin: bytes,
        name: str,
        device: int,
        n: int,
        k: int,
        bf16: bool,
        chunks: Sequence[tuple[tuple[int, int, int], int, int, bool, int, int]],
    ) -> None: ...
    def run(
        self,
        x: int,
        qweight: int,
        scales: int,
        zeros: int,
        bias: int,
        out: int,
        workspace: int,
        m: int,
        stream: int,
    ) -> None: ...

class CudaFunction:
    registers: int
    local_bytes: int
    static_shared_bytes: int
    max_threads: int

    def __init__(
        self, cubin: bytes, name: str, device: int, boxes: tuple[int, int, bool] | None = None
    ) -> None: ...
    def launch(
        self,
        grid: tuple[int, int, int],
        block: int,
        shared_bytes: int,
        stream: int,
        arguments: Sequence[int],
        programmatic: bool = False,
    ) -> None: ...
