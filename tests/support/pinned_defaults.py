"""The default configs of every preset on some devices, as text. Run it to write the file anew."""

from itertools import groupby

from places import FROZEN

from autotune.checkpoints.shapes import PRESETS, parse_shapes
from autotune.families import registry
from autotune.values.device import Device
from autotune.values.layer import BUCKETS, Layer, Problem

FILE = FROZEN / "defaults.txt"

COMMON = ",group_size=128,dtype=fp16"

DEVICES = (
    Device("cuda", 0, "NVIDIA H200", "sm_90", 132, 60 << 20, 232448, 140 << 30),
    Device("cuda", 0, "NVIDIA H100 80GB HBM3", "sm_90", 132, 50 << 20, 232448, 80 << 30),
    Device("cuda", 0, "NVIDIA A100-SXM4-80GB", "sm_80", 108, 40 << 20, 166912, 80 << 30),
    Device("cpu", 0, "CPU of 8 threads", "x86_64_avx512", 8, 32 << 20, 0, 64 << 30),
)


def layers() -> list[Layer]:
    """Those of all presets in fp16 and groups of 128, and one in another format."""
    shapes = parse_shapes(";".join(PRESETS))
    return sorted(
        {shape.layer for shape in shapes} | {Layer(4096, 4096, group_size=32, dtype="bf16", zero_point=False)}
    )


def text() -> str:
    """A line for each device, layer and span of buckets that have one default."""
    lines = []
    for device in DEVICES:
        for layer in layers():
            defaults = [(registry.default_config(Problem(layer, m), device), m) for m in BUCKETS]
            for config, group in groupby(defaults, key=lambda pair: pair[0]):
                buckets = [m for _, m in group]
                name = str(layer).removesuffix(COMMON)
                lines.append(f"{device.name}; {name}; m={buckets[0]}..{buckets[-1]}; {config}\n")
    return "".join(lines)


if __name__ == "__main__":
    FILE.write_text(text())
