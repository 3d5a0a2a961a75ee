// Sparse matrix times packed activations [tiles][columns][16], and both backward products in one walk.
//
// Four tiles (64 rows of the batch) are worked on at a time; a column block of them lies in the L1 cache.
#pragma once
#include <cstring>

#include "index.h"
#include "lanes.h"

namespace gossamer {
namespace {

constexpr int TILES = 4;

inline std::int64_t width_of(const Index& index, std::int64_t column_block) {
  const Header& h = *index.header;
  return smaller(h.column_block, h.columns - column_block * h.column_block);
}

template <int K>
GOSSAMER_INLINE void forward_row(const float* values, const std::uint16_t* columns, int n, const float* x,
                                 std::int64_t x_tile, float* y, std::int64_t y_tile) {
  Lanes even[K], odd[K];  // two chains of additions hide the latency
  for (int k = 0; k < K; ++k) even[k] = Lanes::load(y + k * y_tile), odd[k] = Lanes::all(0.0f);
  int i = 0;
  for (; i + 1 < n; i += 2) {
    const Lanes first = Lanes::all(values[i]), second = Lanes::all(values[i + 1]);
    const float* at = x + static_cast<std::int64_t>(columns[i]) * LANES;
    const float* next = x + static_cast<std::int64_t>(columns[i + 1]) * LANES;
    for (int k = 0; k < K; ++k) {
      even[k].add_product(first, Lanes::load(at + k * x_tile));
      odd[k].add_product(second, Lanes::load(next + k * x_tile));
    }
  }
  if (i < n) {
    const Lanes last = Lanes::all(values[i]);
    const float* at = x + static_cast<std::int64_t>(columns[i]) * LANES;
    for (int k = 0; k < K; ++k) even[k].add_product(last, Lanes::load(at + k * x_tile));
  }
  for (int k = 0; k < K; ++k) {
    even[k].add(odd[k]);
    even[k].store(y + k * y_tile);
  }
}

template <int K>
void forward_block(const Index& index, std::int64_t row_block, std::int64_t column_block, const float* values,
                   const float* x, std::int64_t x_tile, float* y, std::int64_t y_tile) {
  const Block* block = index.blocks + row_block * index.column_blocks + column_block;
  const std::uint16_t* columns = index.columns + block->first;
  const std::uint16_t* row = index.rows + block->segment;
  values += block->first;
  for (const Group *g = index.groups + block[0].group, *end = index.groups + block[1].group; g < end; ++g) {
    const int n = g->values;
    for (int r = g->rows; r > 0; --r, ++row, values += n, columns += n) {
      forward_row<K>(values, columns, n, x, x_tile, y + static_cast<std::int64_t>(*row) * LANES, y_tile);
    }
  }
}

template <int K>
void forward_tiles(const Index& index, std::int64_t row_block, const float* values, const float* bias, const float* x,
                   float* y) {
  const Header& h = *index.header;
  const std::int64_t x_tile = h.columns * LANES, y_tile = h.rows * LANES;
  const std::int64_t first = row_block * h.row_block, height = smaller(h.row_block, h.rows - first);
  y += first * LANES;
  for (int k = 0; k < K; ++k) {
    if (!bias) std::memset(y + k * y_tile, 0, static_cast<std::size_t>(height * LANES) * sizeof(float));
    else for (std::int64_t r = 0; r < height; ++r) Lanes::all(bias[first + r]).store(y + k * y_tile + r * LANES);
  }
  for (std::int64_t cb = 0; cb < index.column_blocks; ++cb) {
    forward_block<K>(index, row_block, cb, values, x + cb * h.column_block * LANES, x_tile, y, y_tile);
  }
}

void linear_forward(const std::uint8_t* bytes, const float* values, const float* bias, const float* x, float* y,
                    std::int64_t tiles, int threads) {
  const Index index = read_index(bytes);
  const std::int64_t x_tile = index.header->columns * LANES, y_tile = index.header->rows * LANES;
  const std::int64_t batches = pieces(tiles, TILES), jobs = batches * index.row_blocks;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (jobs > 1)
  for (std::int64_t job = 0; job < jobs; ++job) {
    const std::int64_t tile = job / index.row_blocks * TILES, row_block = job % index.row_blocks;
    const float* from = x + tile * x_tile;
    float* to = y + tile * y_tile;
    switch (tiles - tile) {
      case 1: forward_tiles<1>(index, row_block, values, bias, from, to); break;
      case 2: forward_tiles<2>(index, row_block, values, bias, from, to); break;
      case 3: forward_tiles<3>(index, row_block, values, bias, from, to); break;
      default: forward_tiles<TILES>(index, row_block, values, bias, from, to);
    }
  }
}

// All of a row's dx are loaded before the first is stored: tiles lie a multiple of 4 KiB apart, and a load whose address
// ends like that of a store just before it waits for that store.
template <int K>
GOSSAMER_INLINE void scatter(float value, const Lanes* dy, float* dx, std::int64_t x_tile) {
  const Lanes factor = Lanes::all(value);
  Lanes to[K];
  for (int k = 0; k < K; ++k) to[k] = Lanes::load(dx + k * x_tile), to[k].add_product(factor, dy[k]);
  for (int k = 0; k < K; ++k) to[k].store(dx + k * x_tile);
}

template <int K>
GOSSAMER_INLINE Lanes products(const Lanes* dy, const float* x, std::int64_t x_tile) {
  Lanes out = Lanes::all(0.0f);
  for (int k = 0; k < K; ++k) out.add_product(dy[k], Lanes::load(x + k * x_tile));
  return out;
}

// x, dx: of one column block. dvalues is written where `first`, added to otherwise.
template <int K, bool TO_X, bool TO_VALUES>
void backward_block(const Index& index, const Block* block, const float* values, const float* x, float* dx,
                    std::int64_t x_tile, const float* dy, std::int64_t y_tile, float* dvalues, bool first) {
  const std::uint16_t* columns = index.columns + block->first;
  const std::uint16_t* row = index.rows + block->segment;
  values += block->first;
  if (TO_VALUES) dvalues += block->first;
  for (const Group *g = index.groups + block[0].group, *end = index.groups + block[1].group; g < end; ++g) {
    const int n = g->values;
    for (int r = g->rows; r > 0; --r, ++row, values += n, columns += n) {
      Lanes from[K];
      for (int k = 0; k < K; ++k) from[k] = Lanes::load(dy + static_cast<std::int64_t>(*row) * LANES + k * y_tile);
      for (int i = 0; i < n; i += 4) {
        const int some = n - i < 4 ? n - i : 4;
        Lanes parts[4];
        for (int j = 0; j < 4; ++j) {
          if (j >= some) {
            parts[j] = Lanes::all(0.0f);
            continue;
          }
          const std::int64_t at = static_cast<std::int64_t>(columns[i + j]) * LANES;
          if (TO_VALUES) parts[j] = products<K>(from, x + at, x_tile);
          if (TO_X) scatter<K>(values[i + j], from, dx + at, x_tile);
        }
        if (!TO_VALUES) continue;
        float total[4];
        sums(parts, total);
        for (int j = 0; j < some; ++j) dvalues[i + j] = first ? total[j] : dvalues[i + j] + total[j];
      }
      if (TO_VALUES) dvalues += n;
    }
  }
}

template <int K, bool TO_X, bool TO_VALUES>
void backward_tiles(const Index& index, std::int64_t column_block, const float* values, const float* x,
                    const float* dy, float* dx, float* dvalues, bool first) {
  const Header& h = *index.header;
  const std::int64_t x_tile = h.columns * LANES, y_tile = h.rows * LANES, start = column_block * h.column_block * LANES;
  const std::size_t width = static_cast<std::size_t>(width_of(index, column_block) * LANES) * sizeof(float);
  if (TO_X) dx += start;
  for (int k = 0; TO_X && k < K; ++k) std::memset(dx + k * x_tile, 0, width);
  for (std::int64_t rb = 0; rb < index.row_blocks; ++rb) {
    const Block* block = index.blocks + rb * index.column_blocks + column_block;
    backward_block<K, TO_X, TO_VALUES>(index, block, values, x + start, dx, x_tile, dy + rb * h.row_block * LANES,
                                       y_tile, dvalues, first);
  }
}

// Threads own column blocks: nothing is shared, and the result does not depend on their number.
template <bool TO_X, bool TO_VALUES>
void backward(const Index& index, const float* values, const float* x, const float* dy, float* dx, float* dvalues,
              std::int64_t tiles, int threads) {
  const std::int64_t x_tile = index.header->columns * LANES, y_tile = index.header->rows * LANES;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (index.column_blocks > 1)
  for (std::int64_t cb = 0; cb < index.column_blocks; ++cb) {
    for (std::int64_t tile = 0; tile < tiles; tile += TILES) {
      const float *from = x + tile * x_tile, *slope = dy + tile * y_tile;
      float* to = TO_X ? dx + tile * x_tile : nullptr;
      const bool first = tile == 0;
      switch (tiles - tile) {
        case 1: backward_tiles<1, TO_X, TO_VALUES>(index, cb, values, from, slope, to, dvalues, first); break;
        case 2: backward_tiles<2, TO_X, TO_VALUES>(index, cb, values, from, slope, to, dvalues, first); break;
        case 3: backward_tiles<3, TO_X, TO_VALUES>(index, cb, values, from, slope, to, dvalues, first); break;
        default: backward_tiles<TILES, TO_X, TO_VALUES>(index, cb, values, from, slope, to, dvalues, first);
      }
    }
  }
}

void linear_backward(const std::uint8_t* bytes, const float* values, const float* x, const float* dy, float* dx,
                     float* dvalues, std::int64_t tiles, int threads) {
  const Index index = read_index(bytes);
  if (dx && dvalues) backward<true, true>(index, values, x, dy, dx, dvalues, tiles, threads);
  else if (dx) backward<true, false>(index, values, x, dy, dx, dvalues, tiles, threads);
  else if (dvalues) backward<false, true>(index, values, x, dy, dx, dvalues, tiles, threads);
}

}  // namespace
}  // namespace gossamer
