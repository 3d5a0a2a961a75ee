// Direct sparse convolution over packed activations [tiles][channels][height][width][16], and both backward products in
// one walk. The weight is an index over (out_channels) x (in_channels / groups * taps) whose column blocks hold whole
// channels. No unfolded copy of the input exists: a strip of rows of a column block is copied with its padding.
//
// Column blocks with about seven values of a row are fastest: what a chunk of positions reads of them lies in the L1
// cache, the copied strip in L2. Grouped convolutions want blocks of few rows, so that few groups share a copy.
#pragma once
#include <cstdlib>

#include "conv_chunk.h"

namespace gossamer {
namespace {

struct Room {  // floats, aligned to a cache line
  float* data;
  explicit Room(std::int64_t floats) : data(nullptr) {
    void* memory = nullptr;
    if (floats > 0 && posix_memalign(&memory, 64, static_cast<std::size_t>(floats) * sizeof(float))) std::abort();
    data = static_cast<float*>(memory);
  }
  ~Room() { std::free(data); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
};

// Row blocks that share no group with others, and the groups they read.
struct Run {
  std::int64_t begin, end, group, groups;
};

inline Run next_run(const Plan& p, const Index& index, std::int64_t begin) {
  const std::int64_t block = index.header->row_block;
  std::int64_t end = begin + 1;
  while (end < index.row_blocks && end * block % p.group_rows) ++end;
  const std::int64_t group = begin * block / p.group_rows;
  return {begin, end, group, pieces(smaller(end * block, p.out_channels), p.group_rows) - group};
}

inline std::int64_t group_stride(const Plan& p) { return (p.direct ? p.group_channels : p.block_channels) * p.channel; }

struct Runs {
  std::int64_t many, widest;  // how many; groups of the widest
};

inline Runs runs_of(const Plan& p, const Index& index) {
  Runs runs{0, 0};
  Run run;
  for (std::int64_t begin = 0; begin < index.row_blocks; begin = run.end, ++runs.many) {
    run = next_run(p, index, begin);
    runs.widest = larger(runs.widest, run.groups);
  }
  return runs;
}

// The offsets and origins of a Walk.
struct Tables {
  Room room;
  std::int32_t *offsets, *origins;
  Tables(const Plan& p, const Index& index)
      : room(p.block_channels * p.taps + p.out_channels), offsets(reinterpret_cast<std::int32_t*>(room.data)),
        origins(offsets + p.block_channels * p.taps) {
    for (std::int64_t c = 0; c < p.block_channels * p.taps; ++c) {
      offsets[c] = static_cast<std::int32_t>(p.offset(c / p.taps, c % p.taps));
    }
    Run run;
    for (std::int64_t begin = 0; begin < index.row_blocks; begin = run.end) {
      run = next_run(p, index, begin);
      const std::int64_t end = smaller(run.end * index.header->row_block, p.out_channels);
      for (std::int64_t r = begin * index.header->row_block; r < end; ++r) {
        origins[r] = static_cast<std::int32_t>((r / p.group_rows - run.group) * group_stride(p));
      }
    }
  }
};

inline Walk walk_of(const Plan& p, const Index& index, const Tables& tables, const float* values) {
  return {&index, values, tables.offsets, tables.origins, p.line, p.out_line(), p.out_image()};
}

// The channels of one column block and all groups of a run: body(channel of the input, its place in a copy).
template <class Body>
GOSSAMER_INLINE void channels_of(const Plan& p, const Run& run, std::int64_t column_block, Body body) {
  const std::int64_t first = column_block * p.block_channels;
  const std::int64_t channels = smaller(p.block_channels, p.group_channels - first);
  for (std::int64_t g = 0; g < run.groups; ++g) {
    for (std::int64_t c = 0; c < channels; ++c) {
      body((run.group + g) * p.group_channels + first + c, (g * p.block_channels + c) * p.channel);
    }
  }
}

// Where a strip of a column block begins in the input, for plans that read it there.
inline std::int64_t in_place(const Plan& p, const Run& run, std::int64_t column_block, std::int64_t first_row) {
  return (run.group * p.group_channels + column_block * p.block_channels) * p.image() + first_row * p.line;
}

inline const float* read_strip(const Plan& p, const Run& run, std::int64_t column_block, std::int64_t first_row,
                               const float* x, float* copy) {
  if (p.direct) return x + in_place(p, run, column_block, first_row);
  channels_of(p, run, column_block, [&](std::int64_t channel, std::int64_t at) {
    copy_channel(p, first_row, x + channel * p.image(), copy + at);
  });
  return copy;
}

constexpr std::int64_t COPY = 1 << 18;  // bytes wanted: this copy and its slopes stay in an L2 cache of 1 MiB with dy
constexpr std::int64_t JOBS = 16;       // wanted, however few the tiles

// Rows of output whose copy takes up about COPY bytes.
inline std::int64_t rows_in(const Plan& p, std::int64_t groups) {
  if (p.direct) return p.vertical.out;
  const std::int64_t line = p.horizontal.phases * p.columns() * LANES * static_cast<std::int64_t>(sizeof(float));
  return COPY / (groups * p.block_channels * p.vertical.phases * line) - p.vertical.reach;
}

inline void forward_strip(const Plan& p, const Walk& w, std::int64_t first_row, const float* bias, const float* x,
                          float* y, float* copy) {
  const Index& index = *w.index;
  const std::int64_t rows = smaller(p.strip, p.vertical.out - first_row);
  y += first_row * w.out_line;
  for (std::int64_t o = 0; o < p.out_channels; ++o) {
    const Lanes start = Lanes::all(bias ? bias[o] : 0.0f);
    for (std::int64_t i = 0; i < rows * w.out_line; i += LANES) start.store(y + o * w.out_image + i);
  }
  Run run;
  for (std::int64_t begin = 0; begin < index.row_blocks; begin = run.end) {
    run = next_run(p, index, begin);
    for (std::int64_t cb = 0; cb < index.column_blocks; ++cb) {
      const float* from = read_strip(p, run, cb, first_row, x, copy);
      chunks(p, rows, [&](std::int64_t row, std::int64_t column, std::int64_t width, std::int64_t lines) {
        const float* at = from + row * w.line + column * LANES;
        float* to = y + row * w.out_line + column * LANES;
        for (std::int64_t rb = run.begin; rb < run.end; ++rb) walk_chunk<Forward>(width, lines, w, rb, cb, at, to);
      });
    }
  }
}

void conv_forward(const std::uint8_t* bytes, const float* values, const float* bias, const float* x, float* y,
                  const Geometry* geometry, int threads) {
  const Index index = read_index(bytes);
  Plan p = plan(*geometry, *index.header);
  const Runs runs = runs_of(p, index);
  cut(p, smaller(rows_in(p, runs.widest), pieces(p.tiles * p.vertical.out, JOBS)));
  const Tables tables(p, index);
  const Walk w = walk_of(p, index, tables, values);
  const std::int64_t strips = p.strips(), jobs = p.tiles * strips;
#pragma omp parallel num_threads(threads) if (jobs > 1)
  {
    const Room copy(p.direct ? 0 : runs.widest * p.block_channels * p.channel);
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t job = 0; job < jobs; ++job) {
      const std::int64_t tile = job / strips, row = job % strips * p.strip;
      forward_strip(p, w, row, bias, x + tile * p.in_channels * p.image(), y + tile * p.out_channels * p.out_image(),
                    copy.data);
    }
  }
}

// What one backward call works on. Either of dx and dvalues may be null.
struct Slopes {
  const float *x, *dy;
  float *dx, *dvalues;
};

// Some column blocks of a run: what one job owns for its share of the tiles.
struct Piece {
  Run run;
  std::int64_t begin, end;
};

template <bool TO_X, bool TO_VALUES>
void backward_strip(const Plan& p, const Walk& w, const Run& run, std::int64_t cb, std::int64_t first_row,
                    const Slopes& s, float* copy, float* dcopy) {
  const float* from = TO_VALUES ? read_strip(p, run, cb, first_row, s.x, copy) : nullptr;
  float* into = TO_X && p.direct ? s.dx + in_place(p, run, cb, first_row) : dcopy;
  const std::size_t copied = static_cast<std::size_t>(run.groups * p.block_channels * p.channel) * sizeof(float);
  if (TO_X && !p.direct) std::memset(dcopy, 0, copied);
  chunks(p, smaller(p.strip, p.vertical.out - first_row),
         [&](std::int64_t row, std::int64_t column, std::int64_t width, std::int64_t lines) {
           const std::int64_t at = row * w.line + column * LANES;
           const float* slope = s.dy + (first_row + row) * w.out_line + column * LANES;
           const float* x = TO_VALUES ? from + at : nullptr;
           float* dx = TO_X ? into + at : nullptr;
           for (std::int64_t rb = run.begin; rb < run.end; ++rb) {
             walk_chunk<Backward<TO_X, TO_VALUES>::template Chunk>(width, lines, w, rb, cb, x, dx, slope, s.dvalues);
           }
         });
  if (!TO_X || p.direct) return;
  channels_of(p, run, cb, [&](std::int64_t channel, std::int64_t at) {
    add_channel(p, first_row, dcopy + at, s.dx + channel * p.image());
  });
}

// One tile. dvalues is added to. All column blocks of a strip are worked on while its dy lies in the cache.
template <bool TO_X, bool TO_VALUES>
void backward_tile(const Plan& p, const Walk& w, const Piece& piece, const Slopes& s, float* copy, float* dcopy) {
  const std::size_t image = static_cast<std::size_t>(p.image()) * sizeof(float);
  const bool fresh = TO_X && (p.direct || !covers(p.vertical) || !covers(p.horizontal));
  for (std::int64_t cb = piece.begin; fresh && cb < piece.end; ++cb) {
    channels_of(p, piece.run, cb, [&](std::int64_t c, std::int64_t) { std::memset(s.dx + c * p.image(), 0, image); });
  }
  for (std::int64_t first = 0; first < p.vertical.out; first += p.strip) {
    for (std::int64_t cb = piece.begin; cb < piece.end; ++cb) {
      backward_strip<TO_X, TO_VALUES>(p, w, piece.run, cb, first, s, copy, dcopy);
    }
  }
}

template <bool TO_X, bool TO_VALUES>
void conv_backward_tiles(const Plan& p, const Walk& w, const Piece& piece, std::int64_t tile, std::int64_t end,
                         const Slopes& s, float* copies, std::int64_t copy) {
  const Index& index = *w.index;
  for (std::int64_t rb = piece.run.begin; TO_VALUES && rb < piece.run.end; ++rb) {
    const Block* blocks = index.blocks + rb * index.column_blocks;
    const std::int64_t first = blocks[piece.begin].first;
    std::memset(s.dvalues + first, 0, static_cast<std::size_t>(blocks[piece.end].first - first) * sizeof(float));
  }
  const std::int64_t x_tile = p.in_channels * p.image(), y_tile = p.out_channels * p.out_image();
  for (; tile < end; ++tile) {
    const Slopes own{TO_VALUES ? s.x + tile * x_tile : nullptr, s.dy + tile * y_tile,
                     TO_X ? s.dx + tile * x_tile : nullptr, s.dvalues};
    backward_tile<TO_X, TO_VALUES>(p, w, piece, own, copies, copies + copy);
  }
}

// The number of shares the tiles are dealt out in. Each has dvalues of its own, which must stay small beside dx.
inline std::int64_t shares_of(const Plan& p, std::int64_t count) {
  const std::int64_t activations = p.tiles * p.in_channels * p.image();
  return larger(1, smaller(smaller(p.tiles, JOBS), 1 + activations / (4 * count + 1)));
}

// Jobs are shares of the tiles of some column blocks. The shares' dvalues are added up in order at the end, and their
// number does not depend on that of the threads: neither does the result.
template <bool TO_X, bool TO_VALUES>
void backward_jobs(const Plan& p, const Walk& w, const Runs& runs, const Slopes& s, int threads) {
  const Index& index = *w.index;
  const std::int64_t count = index.header->count, shares = shares_of(p, count), blocks = index.column_blocks;
  const std::int64_t whole = runs.many * shares;
  const std::int64_t parts = whole >= 2 * threads ? 1 : smaller(blocks, pieces(4 * threads, whole));
  const std::int64_t copy = p.direct ? 0 : runs.widest * p.block_channels * p.channel;
  const Room partial(TO_VALUES ? (shares - 1) * count : 0);
#pragma omp parallel num_threads(threads)
  {
    const Room copies(2 * copy);
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t job = 0; job < runs.many * parts * shares; ++job) {
      const std::int64_t share = job % shares, number = job / shares % parts;
      Piece piece{next_run(p, index, 0), number * blocks / parts, (number + 1) * blocks / parts};
      for (std::int64_t run = job / shares / parts; run > 0; --run) piece.run = next_run(p, index, piece.run.end);
      Slopes own = s;
      if (TO_VALUES && share > 0) own.dvalues = partial.data + (share - 1) * count;
      conv_backward_tiles<TO_X, TO_VALUES>(p, w, piece, share * p.tiles / shares, (share + 1) * p.tiles / shares, own,
                                      copies.data, copy);
    }
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < (TO_VALUES && shares > 1 ? count : 0); ++i) {
      for (std::int64_t share = 1; share < shares; ++share) s.dvalues[i] += partial.data[(share - 1) * count + i];
    }
  }
}

void conv_backward(const std::uint8_t* bytes, const float* values, const float* x, const float* dy, float* dx,
                   float* dvalues, const Geometry* geometry, int threads) {
  const Index index = read_index(bytes);
  Plan p = plan(*geometry, *index.header);
  const Runs runs = runs_of(p, index);
  cut(p, rows_in(p, runs.widest));
  const Tables tables(p, index);
  const Walk w = walk_of(p, index, tables, values);
  const Slopes s{x, dy, dx, dvalues};
  if (dx && dvalues) backward_jobs<true, true>(p, w, runs, s, threads);
  else if (dx) backward_jobs<true, false>(p, w, runs, s, threads);
  else if (dvalues) backward_jobs<false, true>(p, w, runs, s, threads);
}

}  // namespace
}  // namespace gossamer
