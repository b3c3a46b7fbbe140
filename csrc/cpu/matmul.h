#pragma once

#include "cpu/tile.h"

namespace autotune::cpu {

// out[m, n] = x[m, k] @ w[n, k].T + bias[n] with the weight in the packed layout of
// autotune/layouts/cpu.py. zeros and bias may be null. The bits of out depend on the instruction set,
// split_k, whether weights are unpacked, and whether there is one token; on no other tunable, nor on how the
// threads are scheduled.
struct Matmul {
  int64_t m, n, k, group_size;
  Dtype dtype;
  const void *x, *qweight, *scales, *zeros, *bias;
  void* out;
  int split_k;   // parts of k, of whole groups, that are summed last
  int tile_n;    // rows per task
  int unpack_m;  // tokens for which weights are unpacked into the cache; 0: in registers, for a few tokens
  int threads;
};

void matmul(const Matmul& call);

}  // namespace autotune::cpu
