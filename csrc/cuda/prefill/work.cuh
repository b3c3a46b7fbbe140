// Which tiles, and which columns of them, a worker of prefill.cu multiplies: all columns of whole waves of
// tiles, and of the tiles that would be left for a last wave of few an equal share of the columns of all.
//
// Workers have their shares in a row, so that a tile's columns belong to one worker or to some that follow
// each other. The one with the first columns owns the tile: the others leave their sums to it.
#pragma once

#include "prefill/block.cuh"

namespace {

// Columns are shared out by groups, at least 64 of them.
constexpr int kShareUnits = GROUP == 128 ? 2 : 1;
// A share of a tile of fewer than so many groups costs more than it spares.
constexpr int kLeastShare = 4;
// Tiles of so many tokens follow each other before those of other rows, which reads the least of both in a
// wave: a tile's tokens are eight times the bytes of its rows.
constexpr int kTokenTiles = 4;

// Units of 64 columns of a tile, and who owns the tile's sums.
struct Piece {
  int row_block;  // the first 64 rows
  int token;
  int begin, end;
  int stream_end;  // of a tile that is shared: where it ends among the columns of all; else 0
};

struct Work {
  int worker, workers;
  int row_tiles, token_tiles, units, shares;  // shares: of a tile
  int whole, left;                            // tiles of whole waves, tiles that are shared

  __device__ __forceinline__ Work(int tokens, const PackedWeight& weight) {
    // Those who wait for others' sums come after them.
    workers = gridDim.x / kBlocks, worker = workers - 1 - static_cast<int>(blockIdx.x) / kBlocks;
    row_tiles = (weight.n64 + kRowBlocks * CLUSTER - 1) / (kRowBlocks * CLUSTER);
    token_tiles = (tokens + TILE_M - 1) / TILE_M;
    units = weight.k64, shares = (units + kShareUnits - 1) / kShareUnits;
    const int tiles = row_tiles * token_tiles, last = tiles % workers;
    left = STREAM_K && last ? (tiles < workers ? tiles : last + workers) : 0;
    whole = tiles - left;
  }

  // Where the worker's columns begin among those of all tiles that are shared.
  __device__ __forceinline__ int share(int of) const {
    const int at = left * shares * of / workers;
    const int past = at % shares;
    return past < kLeastShare ? at - past : shares - past < kLeastShare ? at + shares - past : at;
  }

  __device__ __forceinline__ Piece piece(int tile, int begin, int end, int stream_end) const {
    const int group = tile / (kTokenTiles * row_tiles), rest = tile - group * kTokenTiles * row_tiles;
    const int width = min(kTokenTiles, token_tiles - group * kTokenTiles);
    const int rank = CLUSTER > 1 ? static_cast<int>(blockIdx.x) % CLUSTER : 0;
    return {(rest / width * CLUSTER + rank) * kRowBlocks, (group * kTokenTiles + rest % width) * TILE_M,
            begin * kShareUnits, min(units, end * kShareUnits), stream_end};
  }
};

// The pieces of a worker, one after the other.
struct Pieces {
  const Work& work;
  int tile, at, to;

  __device__ __forceinline__ explicit Pieces(const Work& work)
      : work(work), tile(work.worker), at(work.share(work.worker)), to(work.share(work.worker + 1)) {}

  __device__ __forceinline__ bool next(Piece* piece) {
    if (tile < work.whole) {
      const int rank = SPLIT_K > 1 ? static_cast<int>(blockIdx.x) % SPLIT_K : 0;
      *piece = work.piece(tile, work.shares * rank / SPLIT_K, work.shares * (rank + 1) / SPLIT_K, 0);
      tile += work.workers;
      return true;
    }
    if (at >= to) return false;
    const int of = at / work.shares, begin = at - of * work.shares, end = min(work.shares, begin + to - at);
    *piece = work.piece(work.whole + of, begin, end, (of + 1) * work.shares);
    at += end - begin;
    return true;
  }
};

}  // namespace
