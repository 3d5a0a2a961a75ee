// The inner loops of a convolution: one block of the weight times a chunk of output positions held in registers.
#pragma once
#include "conv_strip.h"

namespace gossamer {
namespace {

#if defined(__AVX512F__)
constexpr int SPAN = 8;  // positions whose sums are held in registers
#elif defined(__AVX__) || defined(__aarch64__)
constexpr int SPAN = 6;
#else
constexpr int SPAN = 3;
#endif

// What every walk over a block needs beside the activations.
struct Walk {
  const Index* index;
  const float* values;
  const std::int32_t* offsets;  // of each column of a block, from its position for the first tap
  const std::int32_t* origins;  // of each row of the matrix: where its group's channels begin
  std::int64_t line, out_line, out_image;
};

template <int K, int A>
struct Forward {
  // A lines of K neighbouring positions of all rows of one block.
  static void walk(const Walk& w, std::int64_t row_block, std::int64_t column_block, const float* x, float* y) {
    const Index& index = *w.index;
    const Block* block = index.blocks + row_block * index.column_blocks + column_block;
    const std::int64_t first = row_block * index.header->row_block;
    const std::uint16_t* columns = index.columns + block->first;
    const std::uint16_t* row = index.rows + block->segment;
    const float* values = w.values + block->first;
    y += first * w.out_image;
    for (const Group *g = index.groups + block[0].group, *end = index.groups + block[1].group; g < end; ++g) {
      const int n = g->values;
      for (int r = g->rows; r > 0; --r, ++row, values += n, columns += n) {
        line(w, values, columns, n, x + w.origins[first + *row], y + *row * w.out_image);
      }
    }
  }

  static GOSSAMER_INLINE void line(const Walk& w, const float* values, const std::uint16_t* columns, int n,
                                   const float* x, float* y) {
    Lanes total[A][K];
    for (int a = 0; a < A; ++a) {
      for (int k = 0; k < K; ++k) total[a][k] = Lanes::load(y + a * w.out_line + k * LANES);
    }
    for (int i = 0; i < n; ++i) {
      const Lanes value = Lanes::all(values[i]);
      const float* at = x + w.offsets[columns[i]];
      for (int a = 0; a < A; ++a) {
        for (int k = 0; k < K; ++k) total[a][k].add_product(value, Lanes::load(at + a * w.line + k * LANES));
      }
    }
    for (int a = 0; a < A; ++a) {
      for (int k = 0; k < K; ++k) total[a][k].store(y + a * w.out_line + k * LANES);
    }
  }
};

template <bool TO_X, bool TO_VALUES>
struct Backward {
  template <int K, int A>
  struct Chunk {
    static void walk(const Walk& w, std::int64_t row_block, std::int64_t column_block, const float* x, float* dx,
                     const float* dy, float* dvalues) {
      const Index& index = *w.index;
      const Block* block = index.blocks + row_block * index.column_blocks + column_block;
      const std::int64_t first = row_block * index.header->row_block;
      const std::uint16_t* row = index.rows + block->segment;
      std::int64_t value = block->first;
      dy += first * w.out_image;
      for (const Group *g = index.groups + block[0].group, *end = index.groups + block[1].group; g < end; ++g) {
        const int n = g->values;
        for (int r = g->rows; r > 0; --r, ++row, value += n) {
          const std::int32_t origin = w.origins[first + *row];
          line(w, value, n, x + origin, TO_X ? dx + origin : nullptr, dy + *row * w.out_image, dvalues);
        }
      }
    }

    static GOSSAMER_INLINE void line(const Walk& w, std::int64_t value, int n, const float* x, float* dx,
                                     const float* dy, float* dvalues) {
      const float* values = w.values + value;
      const std::uint16_t* columns = w.index->columns + value;
      Lanes from[A][K];
      for (int a = 0; a < A; ++a) {
        for (int k = 0; k < K; ++k) from[a][k] = Lanes::load(dy + a * w.out_line + k * LANES);
      }
      int i = 0;
      for (; i + 4 <= n; i += 4) {
        Lanes parts[4];
        for (int j = 0; j < 4; ++j) parts[j] = visit(w, values[i + j], w.offsets[columns[i + j]], x, dx, from);
        if (!TO_VALUES) continue;
        float totals[4];
        sums(parts, totals);
        for (int j = 0; j < 4; ++j) dvalues[value + i + j] += totals[j];
      }
      for (; i < n; ++i) {
        const Lanes part = visit(w, values[i], w.offsets[columns[i]], x, dx, from);
        if (TO_VALUES) dvalues[value + i] += sum(part);
      }
    }

    // Everything is loaded before the first store: a load whose address ends like that of a store just before it waits.
    static GOSSAMER_INLINE Lanes visit(const Walk& w, float value, std::int64_t offset, const float* x, float* dx,
                                       const Lanes (&from)[A][K]) {
      const Lanes factor = Lanes::all(value);
      Lanes product = Lanes::all(0.0f), to[A][K];
      for (int a = 0; a < A; ++a) {
        for (int k = 0; k < K; ++k) {
          const std::int64_t at = offset + a * w.line + k * LANES;
          if (TO_VALUES) product.add_product(from[a][k], Lanes::load(x + at));
          if (TO_X) to[a][k] = Lanes::load(dx + at), to[a][k].add_product(factor, from[a][k]);
        }
      }
      for (int a = 0; TO_X && a < A; ++a) {
        for (int k = 0; k < K; ++k) to[a][k].store(dx + offset + a * w.line + k * LANES);
      }
      return product;
    }
  };
};

// Calls Chunk<K, A>::walk with numbers known when compiling: `width` <= SPAN positions of `lines` rows.
template <template <int, int> class Chunk, class... Arguments>
GOSSAMER_INLINE void walk_chunk(std::int64_t width, std::int64_t lines, Arguments... arguments) {
  if (lines == 4) {
    if (width == 1) return Chunk<1, SPAN < 4 ? 1 : 4>::walk(arguments...);
    return Chunk<2, SPAN < 8 ? 1 : 4>::walk(arguments...);
  }
  if (lines == 2) {
    switch (width) {
      case 1: return Chunk<1, 2>::walk(arguments...);
      case 2: return Chunk<2, SPAN < 4 ? 1 : 2>::walk(arguments...);
      case 3: return Chunk<3, SPAN < 6 ? 1 : 2>::walk(arguments...);
      default: return Chunk<SPAN < 4 ? SPAN : 4, SPAN < 8 ? 1 : 2>::walk(arguments...);
    }
  }
  switch (width) {
    case 1: return Chunk<1, 1>::walk(arguments...);
    case 2: return Chunk<2, 1>::walk(arguments...);
    case 3: return Chunk<3, 1>::walk(arguments...);
    case 4: return Chunk<SPAN < 4 ? SPAN : 4, 1>::walk(arguments...);
    case 5: return Chunk<SPAN < 5 ? SPAN : 5, 1>::walk(arguments...);
    case 6: return Chunk<SPAN < 6 ? SPAN : 6, 1>::walk(arguments...);
    case 7: return Chunk<SPAN < 7 ? SPAN : 7, 1>::walk(arguments...);
    default: return Chunk<SPAN, 1>::walk(arguments...);
  }
}

// Cuts `rows` output rows into chunks: body(row, column, width, lines).
template <class Body>
GOSSAMER_INLINE void chunks(const Plan& p, std::int64_t rows, Body body) {
  const std::int64_t out = p.horizontal.out, cuts = pieces(out, SPAN);
  for (std::int64_t y = 0, lines; y < rows; y += lines) {
    const std::int64_t most = cuts > 1 ? 1 : smaller(SPAN / out, rows - y);
    lines = most >= 4 ? 4 : most >= 2 ? 2 : 1;
    for (std::int64_t c = 0, x = 0, width; c < cuts; ++c, x += width) {
      width = out / cuts + (c < out % cuts);
      body(y, x, width, lines);
    }
  }
}

}  // namespace
}  // namespace gossamer
