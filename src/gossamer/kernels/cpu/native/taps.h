// A convolution whose weight has the form
//   weight[o][c][t] = sum over parts s of filters[o][s][t] * sum over k < rank of mix[o][s][k] * channels[s][k][c],
// after its product with `channels`: z [tiles][groups][parts][rank][height][width][16] holds the sums over c, and
//   planes[o][s] = sum over k of mix[o][s][k] z[group of o][s][k],
//   y[o] = sum over parts s and taps t of filters[o][s][t] planes[o][s] shifted by t.
// Planes never leave the cache: they are made for a few outputs and a few rows, with the padding written out.
#pragma once
#include "taps_line.h"

namespace gossamer {
namespace {

constexpr std::int64_t TAP_COPY = 1 << 18;  // bytes of planes: with what they are made of, they stay in an L2 cache
constexpr std::int64_t HEIGHT = 4;          // rows of output worth moving a window for
constexpr std::int64_t OUTPUTS = 16;        // whose planes are held together; backward twice as many

struct Factors {
  const Geometry& g;
  std::int64_t parts, rank;
  const float *mix, *filters;

  std::int64_t taps() const { return g.kernel_height * g.kernel_width; }
  std::int64_t group_rows() const { return g.out_channels / g.groups; }
  std::int64_t image() const { return g.height * g.width * LANES; }
  std::int64_t out_image() const { return g.out_height * g.out_width * LANES; }
  std::int64_t group() const { return parts * rank * image(); }  // floats of z
  const float* mixed(std::int64_t o, std::int64_t part) const { return mix + (o * parts + part) * rank; }
  const float* filter(std::int64_t o, std::int64_t part) const { return filters + (o * parts + part) * taps(); }
};

inline std::int64_t floored(std::int64_t a, std::int64_t b) { return a >= 0 ? a / b : -pieces(-a, b); }

// Positions along one axis that some taps read, of which those from `low` to `high` exist.
struct Reach {
  std::int64_t first, size, low, high;
  Reach(std::int64_t first_, std::int64_t end, std::int64_t existing)
      : first(first_), size(larger(0, end - first_)), low(smaller(larger(0, -first_), size)),
        high(larger(low, smaller(size, existing - first_))) {}
};

// -- forward --

inline Reach columns_read(const Geometry& g) {
  const std::int64_t end = (g.out_width - 1) * g.stride_width + (g.kernel_width - 1) * g.dilation_width + 1;
  return {-g.pad_width, end - g.pad_width, g.width};
}

// What is held for some outputs: rows of their planes, as many as `height` rows of output read, moving down.
struct Planes {
  const Factors& f;
  Reach columns;
  std::int64_t outputs, height;

  explicit Planes(const Factors& f_)
      : f(f_), columns(columns_read(f.g)), outputs(smaller(OUTPUTS, pieces(f.g.out_channels, PLANES) * PLANES)),
        height(smaller(HEIGHT, f.g.out_height)) {
    const std::int64_t bytes = f.parts * line() * static_cast<std::int64_t>(sizeof(float));
    const std::int64_t room = TAP_COPY / (bytes * rows());
    outputs = larger(PLANES, smaller(outputs, room / PLANES * PLANES));
    const std::int64_t more = TAP_COPY / (bytes * outputs) - rows();
    height = smaller(f.g.out_height, larger(1, height + floored(more, f.g.stride_height)));
  }

  std::int64_t line() const { return columns.size * LANES; }
  std::int64_t rows_for(std::int64_t rows) const {
    return (rows - 1) * f.g.stride_height + (f.g.kernel_height - 1) * f.g.dilation_height + 1;
  }
  std::int64_t rows() const { return rows_for(height); }
  std::int64_t plane() const { return rows() * line(); }
  std::int64_t floats() const { return outputs * f.parts * plane(); }
  std::int64_t points() const { return columns.high - columns.low; }
};

struct Forwards {
  const Planes& w;
  std::int64_t first, last;  // outputs
  const float* z;
  float *y, *planes, *line;
  Tap* taps;

  void start() const {
    const Geometry& g = w.f.g;
    for (std::int64_t n = 0; n < w.f.parts * w.f.taps(); ++n) {
      const std::int64_t t = n % w.f.taps(), i = t / g.kernel_width, j = t % g.kernel_width;
      const std::int64_t at = i * g.dilation_height * w.line() + j * g.dilation_width * LANES;
      taps[n] = {static_cast<std::int32_t>(n / w.f.taps() * w.plane() + at), static_cast<std::int32_t>(n)};
    }
    std::memset(planes, 0, static_cast<std::size_t>(w.floats()) * sizeof(float));
  }

  void move(std::int64_t from, std::int64_t rows) const {
    for (std::int64_t p = 0; p < (last - first) * w.f.parts; ++p) {
      float* plane = planes + p * w.plane();
      std::memmove(plane, plane + from * w.line(), static_cast<std::size_t>(rows * w.line()) * sizeof(float));
    }
  }

  void clear(std::int64_t row) const {
    for (std::int64_t p = 0; p < (last - first) * w.f.parts; ++p) {
      std::memset(planes + p * w.plane() + row * w.line(), 0, static_cast<std::size_t>(w.line()) * sizeof(float));
    }
  }

  // One row of the image into one row of the planes. The planes of z may share few sets of an L1 cache: where many
  // outputs read them, their line is copied.
  void make(std::int64_t image_row, std::int64_t row) const {
    const Factors& f = w.f;
    const std::int64_t rows = f.group_rows();
    for (std::int64_t o = first, end; o < last; o = end) {
      end = smaller(last, (o / rows + 1) * rows);
      for (std::int64_t s = 0; s < f.parts; ++s) {
        const float* from = z + o / rows * f.group() + s * f.rank * f.image() +
                            (image_row * f.g.width + w.columns.first + w.columns.low) * LANES;
        const bool copied = end - o > PLANES;
        if (copied) collect(from, f.image(), f.rank, w.points(), line);
        float* to = planes + ((o - first) * f.parts + s) * w.plane() + row * w.line() + w.columns.low * LANES;
        multiply_rows({f.mixed(o, s), f.parts * f.rank, 1, f.rank}, end - o, copied ? line : from,
                      copied ? 0 : f.image(), to, f.parts * w.plane(), w.points(), false);
      }
    }
  }

  void filter(std::int64_t begin, std::int64_t end) const {
    const Geometry& g = w.f.g;
    for (std::int64_t o = first; o < last; ++o) {
      const float* from = planes + (o - first) * w.f.parts * w.plane();
      float* to = y + o * w.f.out_image() + begin * g.out_width * LANES;
      for (std::int64_t r = begin; r < end; ++r, from += g.stride_height * w.line(), to += g.out_width * LANES) {
        gather_line(w.f.filter(o, 0), taps, w.f.parts * w.f.taps(), from, g.stride_width * LANES, to, LANES,
                    g.out_width);
      }
    }
  }

  void run(std::int64_t begin, std::int64_t end) const {
    const Geometry& g = w.f.g;
    start();
    for (std::int64_t row = begin, held = 0, held_to = 0; row < end; row += w.height) {
      const std::int64_t stop = smaller(end, row + w.height), top = row * g.stride_height - g.pad_height;
      const std::int64_t bottom = top + w.rows_for(stop - row);
      const std::int64_t kept = row > begin ? larger(0, held_to - top) : 0;
      if (kept) move(top - held, kept);
      for (std::int64_t r = top + kept; r < bottom; ++r) {
        if (r >= 0 && r < g.height && w.points()) make(r, r - top);
        else if (row > begin) clear(r - top);
      }
      filter(row, stop);
      held = top, held_to = bottom;
    }
  }
};

void taps_forward(const float* z, const float* mix, const float* filters, float* y, const Geometry* geometry,
                  std::int64_t parts, int threads) {
  const Geometry& g = *geometry;
  const Factors f{g, parts, g.in_channels / g.groups / parts, mix, filters};
  const Planes window(f);
  const std::int64_t chunks = pieces(g.out_channels, window.outputs), whole = g.tiles * chunks;
  const std::int64_t cuts = smaller(pieces(g.out_height, window.height), pieces(JOBS, whole));
#pragma omp parallel num_threads(threads)
  {
    const Room planes(window.floats()), line(f.rank * g.width * LANES), taps(2 * parts * f.taps());
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t job = 0; job < whole * cuts; ++job) {
      const std::int64_t tile = job / cuts / chunks, first = job / cuts % chunks * window.outputs, cut = job % cuts;
      const Forwards work{window, first, smaller(g.out_channels, first + window.outputs),
                          z + tile * g.in_channels * f.image(), y + tile * g.out_channels * f.out_image(),
                          planes.data, line.data, reinterpret_cast<Tap*>(taps.data)};
      work.run(cut * g.out_height / cuts, (cut + 1) * g.out_height / cuts);
    }
  }
}

// -- backward --

inline Reach rows_written(const Geometry& g, std::int64_t begin, std::int64_t end) {
  const std::int64_t back = g.pad_height - (g.kernel_height - 1) * g.dilation_height;
  return {-floored(-(begin + back), g.stride_height), floored(end - 1 + g.pad_height, g.stride_height) + 1,
          g.out_height};
}

inline Reach columns_written(const Geometry& g) {
  const std::int64_t back = g.pad_width - (g.kernel_width - 1) * g.dilation_width;
  return {-floored(-back, g.stride_width), floored(g.width - 1 + g.pad_width, g.stride_width) + 1, g.out_width};
}

struct Strips {
  std::int64_t height, many;
  Strips(std::int64_t rows, std::int64_t floats_of_row, std::int64_t wanted) {
    const std::int64_t bytes = floats_of_row * static_cast<std::int64_t>(sizeof(float));
    const std::int64_t cuts = smaller(rows, larger(pieces(rows, larger(1, 2 * TAP_COPY / bytes)), wanted));
    height = pieces(rows, cuts), many = pieces(rows, height);
  }
};

// Which outputs hold a point of the input, by its row in a strip and the remainder of its column modulo the stride.
struct Back {
  Tap* taps;            // [rows][phases][taps()]
  std::int32_t* many;   // [rows][phases]
  std::int64_t phases;

  void fill(const Geometry& g, std::int64_t begin, std::int64_t end, const Reach& rows, const Reach& columns) const {
    const std::int64_t all = g.kernel_height * g.kernel_width;
    for (std::int64_t at = 0; at < (end - begin) * phases; ++at) {
      Tap* to = taps + at * all;
      std::int32_t count = 0;
      for (std::int64_t t = 0; t < all; ++t) {
        const std::int64_t row = begin + at / phases + g.pad_height - t / g.kernel_width * g.dilation_height;
        const std::int64_t column = at % phases + g.pad_width - t % g.kernel_width * g.dilation_width;
        if (row % g.stride_height || column % g.stride_width) continue;
        const std::int64_t r = row / g.stride_height - rows.first, c = column / g.stride_width - columns.first;
        to[count++] = {static_cast<std::int32_t>((r * columns.size + c) * LANES), static_cast<std::int32_t>(t)};
      }
      many[at] = count;
    }
  }
};

inline void copy_slope(const Geometry& g, const Reach& rows, const Reach& columns, const float* dy, float* copy) {
  const std::size_t line = static_cast<std::size_t>((columns.high - columns.low) * LANES) * sizeof(float);
  for (std::int64_t r = rows.low; line && r < rows.high; ++r) {
    const std::int64_t at = (rows.first + r) * g.out_width + columns.first + columns.low;
    std::memcpy(copy + (r * columns.size + columns.low) * LANES, dy + at * LANES, line);
  }
}

// The slopes of the planes of one output, on a strip of rows.
inline void backward_output(const Factors& f, const Back& back, std::int64_t o, std::int64_t rows, const float* copy,
                            float* planes) {
  const Geometry& g = f.g;
  const std::int64_t plane = rows * g.width * LANES;
  for (std::int64_t s = 0; s < f.parts; ++s) {
    for (std::int64_t at = 0; at < rows * back.phases; ++at) {
      const std::int64_t row = at / back.phases, phase = at % back.phases;
      float* to = planes + s * plane + (row * g.width + phase) * LANES;
      gather_line(f.filter(o, s), back.taps + at * f.taps(), back.many[at], copy, LANES, to, back.phases * LANES,
                  pieces(g.width - phase, back.phases));
    }
  }
}

inline void backward_group(const Factors& f, const Back& back, const Reach& rows, const Reach& columns,
                           std::int64_t group, std::int64_t begin, std::int64_t end, const float* dy, float* dz,
                           float* copy, float* planes) {
  const Geometry& g = f.g;
  const std::int64_t plane = (end - begin) * g.width * LANES, last = (group + 1) * f.group_rows();
  dz += group * f.group() + begin * g.width * LANES;
  for (std::int64_t o = group * f.group_rows(), many; o < last; o += many) {
    many = smaller(2 * OUTPUTS, last - o);
    for (std::int64_t i = 0; i < many; ++i) {
      copy_slope(g, rows, columns, dy + (o + i) * f.out_image(), copy);
      backward_output(f, back, o + i, end - begin, copy, planes + i * f.parts * plane);
    }
    for (std::int64_t s = 0; s < f.parts; ++s) {
      const Small mix{f.mixed(o, s), 1, f.parts * f.rank, many};
      multiply_rows(mix, f.rank, planes + s * plane, f.parts * plane, dz + s * f.rank * f.image(), f.image(),
                    (end - begin) * g.width, o % f.group_rows() > 0);
    }
  }
}

void taps_backward(const float* dy, const float* mix, const float* filters, float* dz, const Geometry* geometry,
                   std::int64_t parts, int threads) {
  const Geometry& g = *geometry;
  const Factors f{g, parts, g.in_channels / g.groups / parts, mix, filters};
  const Reach columns = columns_written(g);
  const std::int64_t outputs = smaller(2 * OUTPUTS, f.group_rows()), phases = smaller(g.stride_width, g.width);
  const Strips strips(g.height, outputs * parts * g.width * LANES, pieces(JOBS, g.tiles * g.groups));
  const std::int64_t chunk = pieces(g.groups, smaller(g.groups, pieces(JOBS, g.tiles * strips.many)));
  const std::int64_t chunks = pieces(g.groups, chunk);
  const std::int64_t rows = 2 + (strips.height + (g.kernel_height - 1) * g.dilation_height) / g.stride_height;
  const std::int64_t copied = rows * larger(1, columns.size) * LANES;
#pragma omp parallel num_threads(threads)
  {
    const Room copy(copied), planes(outputs * parts * strips.height * g.width * LANES);
    const Room taps(2 * strips.height * phases * f.taps()), many(strips.height * phases);
    const Back back{reinterpret_cast<Tap*>(taps.data), reinterpret_cast<std::int32_t*>(many.data), phases};
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t job = 0; job < g.tiles * strips.many * chunks; ++job) {
      const std::int64_t tile = job / chunks / strips.many, first = job % chunks * chunk;
      const std::int64_t begin = job / chunks % strips.many * strips.height;
      const std::int64_t end = smaller(g.height, begin + strips.height);
      const Reach reach = rows_written(g, begin, end);
      back.fill(g, begin, end, reach, columns);
      std::memset(copy.data, 0, static_cast<std::size_t>(copied) * sizeof(float));
      for (std::int64_t group = first; group < smaller(g.groups, first + chunk); ++group) {
        backward_group(f, back, reach, columns, group, begin, end, dy + tile * g.out_channels * f.out_image(),
                       dz + tile * g.in_channels * f.image(), copy.data, planes.data);
      }
    }
  }
}

}  // namespace
}  // namespace gossamer
