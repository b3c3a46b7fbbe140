"""Autotuning for int4 GEMM kernels: sweep, look up and apply the fastest verified config."""
