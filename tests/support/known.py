"""GPUs and layers as values."""

from autotune.values.device import Device
from autotune.values.layer import Layer

H200 = Device("cuda", 0, "NVIDIA H200", "sm_90", 132, 60 << 20, 232448, 140 << 30)
A100 = Device("cuda", 0, "NVIDIA A100", "sm_80", 108, 40 << 20, 166912, 80 << 30)
A40 = Device("cuda", 0, "NVIDIA A40", "sm_86", 84, 6 << 20, 101376, 45 << 30)
L40S = Device("cuda", 0, "NVIDIA L40S", "sm_89", 142, 96 << 20, 101376, 45 << 30)
RTX4090 = Device("cuda", 0, "NVIDIA GeForce RTX 4090", "sm_89", 128, 72 << 20, 101376, 24 << 30)
B200 = Device("cuda", 0, "NVIDIA B200", "sm_100", 148, 126 << 20, 232448, 180 << 30)
RTX5090 = Device("cuda", 0, "NVIDIA GeForce RTX 5090", "sm_120", 170, 96 << 20, 101376, 32 << 30)
GPUS = [A100, A40, L40S, H200, B200, RTX5090]
LLAMA7B = [Layer(12288, 4096), Layer(4096, 4096), Layer(22016, 4096), Layer(11008, 4096), Layer(4096, 11008)]
