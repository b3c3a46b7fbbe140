// Which tiles, and which columns of them, a worker of prefill.cu multiplies.
//
// A wave is a tile for each worker. Tiles of full waves belong to one worker each. With STREAM_K, the tiles
// that would be left for a last wave of few are shared, and so are those of the wave before it, if there is
// one, lest shares be small: all columns of these tiles are put in a row, and each worker has an equal part
// of the row. The worker with the first columns of a tile owns it, and the others leave their sums to it.
// With 3 workers, 4 tiles and 12 groups of columns:
//
//   worker 0    all of tile 0, and groups 0 to 3 of tile 1              owns tiles 0 and 1
//   worker 1    groups 4 to 11 of tile 1, and groups 0 to 7 of tile 2   owns tile 2
//   worker 2    groups 8 to 11 of tile 2, and all of tile 3             owns tile 3
#pragma once

#include "prefill/block.cuh"

namespace {

// Columns are shared out in parts of so many units: a group, and at least 64 columns.
constexpr int kShareUnits = GROUP == 128 ? 2 : 1;
// Fewer parts of a tile than this cost more than they spare, so that such a border moves to the tile's own.
constexpr int kLeastShare = 4;
// So many tiles of the same rows follow each other before those of the next rows. That reads the least in a
// wave: the tokens of a tile have eight times the bytes of its rows.
constexpr int kTokenTiles = 4;

// Some units of 64 columns of one tile, `begin` up to `end`. Whoever begins at 0 owns the tile.
struct Piece {
  int row_block;  // the first 64 rows
  int token;
  int begin, end;
  int stream_end;  // of a tile that may be shared: where it ends in the row of all parts; else 0
};

struct Work {
  int worker, workers;
  int row_tiles, token_tiles, units, shares;  // shares: parts of a tile's columns
  int whole, left;                            // tiles of one worker each, tiles that are shared

  __device__ __forceinline__ Work(int tokens, const PackedWeight& weight) {
    // Sums come from higher workers, which therefore are the blocks that start first.
    workers = gridDim.x / kBlocks, worker = workers - 1 - static_cast<int>(blockIdx.x) / kBlocks;
    row_tiles = (weight.n64 + kRowBlocks * CLUSTER - 1) / (kRowBlocks * CLUSTER);
    token_tiles = (tokens + TILE_M - 1) / TILE_M;
    units = weight.k64, shares = (units + kShareUnits - 1) / kShareUnits;
    const int tiles = row_tiles * token_tiles, last = tiles % workers;
    left = STREAM_K && last ? (tiles < workers ? tiles : last + workers) : 0;
    whole = tiles - left;
  }

  // Where the columns of worker `of` begin in the row of all parts.
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

// The pieces of a worker, one after the other: its own tiles, then its part of the row.
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
