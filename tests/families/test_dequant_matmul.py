"""Family `dequant_matmul` without a GPU: what it tells a driver and a cuBLASLt that only count."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from known import H200
from places import SUPPORT

from autotune.families.dequant_matmul import FAMILY
from autotune.values.config import Config
from autotune.values.layer import Layer, Problem

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler makes the libraries")

CALLS = """
import ctypes, json, struct, sys
from autotune import _C

library = ctypes.CDLL("libcuda.so.1")
library.counted_notes.restype = ctypes.c_char_p
n, k, rows = 500, 64, 192
chunks = [((1, 3, 1), 128, 0, False, start, min(rows, n - start)) for start in range(0, n, rows)]
header = bytearray(64)
header[:4], header[18:20] = b"\\x7fELF", struct.pack("<H", 190)
matmul = _C.DequantMatmul(bytes(header), "dequantize", 0, n, k, False, chunks)
told = []
for m, bias in json.loads(sys.argv[1]):
    library.counted_clear()
    matmul.run(1024, 2048, 4096, 0, bias, 8192, 16384, m, 0)
    told.append(library.counted_notes().decode().splitlines())
print(json.dumps(told))
"""
WEIGHTS = 16384 + (32 << 20)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The calls of m tokens with their bias, each told as lines."""
    folder = tmp_path_factory.mktemp("libraries")
    source, library = SUPPORT / "counting_cuda.c", folder / "libcuda.so.1"
    subprocess.run(("cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source), check=True)
    (folder / "libcublasLt.so.13").symlink_to(library)

    def told(*calls):
        command = (sys.executable, "-c", CALLS, json.dumps(calls))
        environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return told


def chunk(start, rows, bias=0):
    """What one chunk tells: its rows dequantised, then multiplied by x into their columns of out."""
    return [
        f"dequantize {rows} rows from {start} to {WEIGHTS}",
        *([f"bias at {bias + 2 * start}"] if bias else []),
        f"multiply {WEIGHTS} by 1024 to {8192 + 2 * start}",
    ]


@pytest.mark.parametrize("bias", [0, 512])
def test_a_chunk_is_one_dequantiser_and_one_product(run, bias):
    _, told = run((300, bias), (300, bias))
    assert told == chunk(0, 192, bias) + chunk(192, 192, bias) + chunk(384, 116, bias)


def test_a_choice_is_asked_for_once_for_each_size(run):
    asked = [told.count("choose") for told in run((300, 0), (300, 0), (301, 0), (300, 0), (300, 512))]
    # Two sizes of chunk; the address of the third chunk's columns of out has an alignment of its own.
    assert asked[0] == 3
    assert asked[1:] == [0, 3, 0, 3]


def test_a_rejected_config_says_why():
    config = Config.of("dequant_matmul", chunk_mb=3)
    assert "chunk_mb=3" in FAMILY.reject(config, Problem(Layer(n=4096, k=2048), 16), H200)
