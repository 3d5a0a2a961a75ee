// A matrix of which some square blocks exist, times packed activations [tiles][columns][16], and both products back.
//
// Sixteen samples lie in the lanes; so many rows are accumulated in registers over all blocks of a block row that each
// load of activations serves that many products. For the gradient of the values the columns of a block lie in the lanes.
#pragma once
#include <cstring>
#include <memory>

#include "index.h"
#include "kernels.h"
#include "lanes.h"

namespace gossamer {
namespace {

constexpr int TALL = PARTS == 1 ? 16 : PARTS == 2 ? 4 : 2;  // rows accumulated at once, as registers allow
constexpr int HIGH = PARTS == 1 ? 8 : TALL;                 // those of a gradient

// One strip of blocks, a block row (or, transposed, a block column), and where the operand of each block begins.
template <bool TRANSPOSED>
struct Strip {
  const Blocks& all;
  const std::int32_t *first, *last;  // numbers of the blocks, in `order` if transposed
  std::int64_t across;               // entries along the sum that the matrix has

  GOSSAMER_INLINE std::int64_t number(const std::int32_t* at) const { return TRANSPOSED ? *at : at - all.positions; }
  GOSSAMER_INLINE std::int64_t place(std::int64_t number) const {
    const std::int64_t position = all.positions[number];
    return (TRANSPOSED ? position / all.column_blocks : position % all.column_blocks) * all.side;
  }
};

// R rows of one tile of the product, from row `at` of the strip.
template <int R, bool TRANSPOSED>
GOSSAMER_INLINE void block_panel(const Strip<TRANSPOSED>& strip, std::int64_t at, const float* values, const float* bias,
                                 const float* x, float* y) {
  const std::int64_t side = strip.all.side;
  Lanes sum[R];
  for (int i = 0; i < R; ++i) sum[i] = Lanes::all(bias ? bias[i] : 0.0f);
  values += TRANSPOSED ? at : at * side;
  for (const std::int32_t* block = strip.first; block < strip.last; ++block) {
    const std::int64_t number = strip.number(block), place = strip.place(number);
    const std::int64_t width = smaller(side, strip.across - place);
    const float *from = x + place * LANES, *weight = values + number * side * side;
    const std::int64_t coming = block + 1 < strip.last ? strip.number(block + 1) : number;
    const float *next = x + strip.place(coming) * LANES, *next_weight = values + coming * side * side;
    for (std::int64_t k = 0; k < width; ++k) {
      if (R == 16) {
        __builtin_prefetch(next + k * LANES);
        if (TRANSPOSED) __builtin_prefetch(next_weight + k * side);
      }
      const Lanes each = Lanes::load(from + k * LANES);
      for (int i = 0; i < R; ++i) sum[i].add_product(Lanes::all(TRANSPOSED ? weight[k * side + i] : weight[i * side + k]), each);
    }
  }
  for (int i = 0; i < R; ++i) sum[i].store(y + i * LANES);
}

// As many rows of a tile as there are left, `rows`, in panels of R and then of fewer.
template <int R, bool TRANSPOSED>
GOSSAMER_INLINE void block_rows(const Strip<TRANSPOSED>& strip, std::int64_t at, std::int64_t rows, const float* values,
                                const float* bias, const float* x, float* y) {
  for (; rows - at >= R; at += R) {
    block_panel<R>(strip, at, values, bias ? bias + at : nullptr, x, y + at * LANES);
  }
  if constexpr (R > 1) {
    if (at < rows) block_rows<(R > 8 ? 8 : R > 4 ? 4 : 1)>(strip, at, rows, values, bias, x, y);
  }
}

// y [tiles][height][16] = the matrix, or its transpose, times x [tiles][across][16]. A strip's tiles follow one another,
// so that its weights stay in the cache; threads share what nobody else writes.
template <bool TRANSPOSED>
void block_product(const Blocks& all, const float* values, const float* bias, const float* x, float* y,
                   std::int64_t tiles, int threads) {
  const std::int64_t height = TRANSPOSED ? all.columns : all.rows, across = TRANSPOSED ? all.rows : all.columns;
  const std::int64_t strips = pieces(height, all.side), jobs = strips * tiles;
  const std::int32_t* starts = TRANSPOSED ? all.column_starts : all.row_starts;
  const std::int32_t* list = TRANSPOSED ? all.order : all.positions;
  const int chunk = strips >= 4 * threads ? static_cast<int>(tiles) : 1;
#pragma omp parallel for schedule(dynamic, chunk) num_threads(threads) if (jobs > 1)
  for (std::int64_t job = 0; job < jobs; ++job) {
    const std::int64_t number = job / tiles, tile = job % tiles, first = number * all.side;
    const Strip<TRANSPOSED> strip{all, list + starts[number], list + starts[number + 1], across};
    block_rows<TALL>(strip, 0, smaller(all.side, height - first), values, bias ? bias + first : nullptr,
                     x + tile * across * LANES, y + (tile * height + first) * LANES);
  }
}

void block_forward(const Blocks* all, const float* values, const float* bias, const float* x, float* y,
                   std::int64_t tiles, int threads) {
  block_product<false>(*all, values, bias, x, y, tiles, threads);
}

// R x (W V) entries of a gradient, summed over samples. x: row-major [samples][side]; dy: [tiles][..][16], `tile` apart.
template <int R, int W, int V>
GOSSAMER_INLINE void block_gradient(const float* x, std::int64_t side, const float* dy, std::int64_t tile,
                                    std::int64_t tiles, float* out) {
  typedef float Row __attribute__((vector_size(W * 4), aligned(4), may_alias));
  Row sum[R][V];
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < V; ++v) sum[i][v] = Row{};
  }
  for (std::int64_t t = 0; t < tiles; ++t, dy += tile) {
    for (int lane = 0; lane < LANES; ++lane, x += side) {
      Row each[V];
      for (int v = 0; v < V; ++v) each[v] = *reinterpret_cast<const Row*>(x + v * W);
      for (int i = 0; i < R; ++i) {
        const Row slope = dy[i * LANES + lane] - Row{};
        for (int v = 0; v < V; ++v) sum[i][v] += slope * each[v];
      }
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < V; ++v) *reinterpret_cast<Row*>(out + i * side + v * W) = sum[i][v];
  }
}

// Rows `at` to `rows` of the gradient of a block, in panels of R rows and then of single ones.
template <int R, int W, int V>
void gradient_rows(const float* x, std::int64_t side, const float* dy, std::int64_t tile, std::int64_t tiles,
                   std::int64_t at, std::int64_t rows, float* out) {
  for (; rows - at >= R; at += R) {
    for (std::int64_t c = 0; c < side; c += W * V) {
      block_gradient<R, W, V>(x + c, side, dy + at * LANES, tile, tiles, out + at * side + c);
    }
  }
  if constexpr (R > 1) {
    if (at < rows) gradient_rows<1, W, V>(x, side, dy, tile, tiles, at, rows, out);
  }
}

// [tiles][columns][16] of one block column -> [16 tiles][side], zeros where the matrix has ended.
inline void unpack_strip(const float* x, std::int64_t tile, std::int64_t tiles, std::int64_t width, std::int64_t side,
                         float* to) {
  for (std::int64_t t = 0; t < tiles; ++t, x += tile, to += LANES * side) {
    std::int64_t c = 0;
    for (; c + LANES <= width; c += LANES) transpose(x + c * LANES, LANES, to + c, side);
    for (; c < side; ++c) {
      for (int lane = 0; lane < LANES; ++lane) to[lane * side + c] = c < width ? x[c * LANES + lane] : 0.0f;
    }
  }
}

using Gradient = void (*)(const float*, std::int64_t, const float*, std::int64_t, std::int64_t, std::int64_t,
                          std::int64_t, float*);

inline Gradient gradient_of(std::int64_t side) {
  constexpr int EIGHT = WIDTH < 8 ? WIDTH : 8;
  if (PARTS == 1 && side % 32 == 0) return gradient_rows<HIGH, WIDTH, 32 / WIDTH>;
  if (side % 16 == 0) return gradient_rows<HIGH, WIDTH, PARTS>;
  if (side % 8 == 0) return gradient_rows<HIGH, EIGHT, 8 / EIGHT>;
  return gradient_rows<4 < HIGH ? 4 : HIGH, 4, 1>;
}

// The gradient of some blocks of one block column. turned: room for its activations, which are turned around once.
inline void block_column(const Blocks& all, Gradient gradient, const std::int32_t* first, const std::int32_t* last,
                         const float* x, const float* dy, float* dvalues, std::int64_t tiles, float* turned) {
  if (first == last) return;
  const std::int64_t side = all.side, left = all.positions[*first] % all.column_blocks * side;
  const std::int64_t width = smaller(side, all.columns - left);
  unpack_strip(x + left * LANES, all.columns * LANES, tiles, width, side, turned);
  for (const std::int32_t* block = first; block < last; ++block) {
    const std::int64_t top = all.positions[*block] / all.column_blocks * side, height = smaller(side, all.rows - top);
    float* out = dvalues + *block * side * side;
    gradient(turned, side, dy + top * LANES, all.rows * LANES, tiles, 0, height, out);
    std::memset(out + height * side, 0, static_cast<std::size_t>((side - height) * side) * sizeof(float));
    for (std::int64_t i = 0; width < side && i < height; ++i) {  // 0 times what is not finite would be NaN
      std::memset(out + i * side + width, 0, static_cast<std::size_t>(side - width) * sizeof(float));
    }
  }
}

// Threads take block columns, or parts of one where there are few; each block is the work of one of them.
void block_values(const Blocks& all, const float* x, const float* dy, float* dvalues, std::int64_t tiles, int threads) {
  const std::int64_t parts = all.column_blocks < 2 * threads ? threads : 1, jobs = all.column_blocks * parts;
  const std::int64_t room = tiles * LANES * all.side, workers = smaller(threads, jobs);
  const Gradient gradient = gradient_of(all.side);
  std::unique_ptr<float[]> rooms(new float[static_cast<std::size_t>(room * workers)]);
  std::int64_t taken = 0;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(workers)) if (workers > 1)
  for (std::int64_t worker = 0; worker < workers; ++worker) {
    for (;;) {
      std::int64_t job;
#pragma omp atomic capture
      job = taken++;
      if (job >= jobs) break;
      const std::int32_t* starts = all.column_starts + job / parts;
      const std::int64_t count = starts[1] - starts[0], part = job % parts;
      const std::int32_t* list = all.order + starts[0];
      block_column(all, gradient, list + count * part / parts, list + count * (part + 1) / parts, x, dy, dvalues, tiles,
                   rooms.get() + room * worker);
    }
  }
}

void block_backward(const Blocks* all, const float* values, const float* x, const float* dy, float* dx, float* dvalues,
                    std::int64_t tiles, int threads) {
  if (dx) block_product<true>(*all, values, nullptr, dy, dx, tiles, threads);
  if (dvalues) block_values(*all, x, dy, dvalues, tiles, threads);
}

}  // namespace
}  // namespace gossamer
