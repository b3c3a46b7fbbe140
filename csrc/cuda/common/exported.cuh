// How a geometry.cu says numbers to a test, which compiles it for a config and a launch and reads them from
// the PTX. The launch is LAUNCH_TOKENS, LAUNCH_N, LAUNCH_K, LAUNCH_GRID_X, _Y and _Z, and LAUNCH_ARGUMENT,
// the first of its own arguments. No kernel includes this, so that no record depends on it.
#pragma once

// A compiler may keep constants of the kernel beside them, so the names tell.
#define EXPORT(name) __device__ unsigned exported_##name

constexpr unsigned ceil_div(unsigned a, unsigned b) { return (a + b - 1) / b; }
