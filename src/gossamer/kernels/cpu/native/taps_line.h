// The inner loops of convolutions by small factors (taps.h): products of a small matrix with planes, and filters over
// lines of points; both with their sums in registers.
#pragma once
#include "conv.h"

namespace gossamer {
namespace {

#if defined(__AVX512F__)
constexpr int PLANES = 4, POINTS = 6;  // of a product, whose sums are held in registers
#elif defined(__AVX__) || defined(__aarch64__)
constexpr int PLANES = 2, POINTS = 3;
#else
constexpr int PLANES = 1, POINTS = 3;
#endif

struct Tap {
  std::int32_t offset, number;  // from the first point, in floats; which number of the filter
};

// A matrix (R x depth) times planes at K neighbouring points; its entries are row_step and column_step apart.
struct Small {
  const float* entries;
  std::int64_t row_step, column_step, depth;
};

template <int R, int K>
GOSSAMER_INLINE void multiply(const Small& m, const float* from, std::int64_t from_plane, float* to,
                              std::int64_t to_plane, bool add) {
  Lanes total[R][K];
  for (int r = 0; r < R; ++r) {
    for (int k = 0; k < K; ++k) total[r][k] = add ? Lanes::load(to + r * to_plane + k * LANES) : Lanes::all(0.0f);
  }
  const float* entry = m.entries;
  for (std::int64_t d = 0; d < m.depth; ++d, entry += m.column_step, from += from_plane) {
    Lanes factor[R];
    for (int r = 0; r < R; ++r) factor[r] = Lanes::all(entry[r * m.row_step]);
    for (int k = 0; k < K; ++k) {
      const Lanes one = Lanes::load(from + k * LANES);
      for (int r = 0; r < R; ++r) total[r][k].add_product(factor[r], one);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int k = 0; k < K; ++k) total[r][k].store(to + r * to_plane + k * LANES);
  }
}

// Cuts a line of points into those of one product each: body(first, points).
template <class Body>
GOSSAMER_INLINE void cuts_of(std::int64_t points, Body body) {
  const std::int64_t cuts = pieces(points, POINTS);
  for (std::int64_t c = 0, first = 0, width; c < cuts; ++c, first += width) {
    width = points / cuts + (c < points % cuts);
    body(first, width);
  }
}

// from_plane 0: the points of a cut lie together, plane after plane.
template <int R>
void multiply_line(const Small& m, const float* from, std::int64_t from_plane, float* to, std::int64_t to_plane,
                   std::int64_t points, bool add) {
  cuts_of(points, [&](std::int64_t first, std::int64_t width) {
    const float* at = from + first * LANES * (from_plane ? 1 : m.depth);
    const std::int64_t plane = from_plane ? from_plane : width * LANES;
    float* out = to + first * LANES;
    switch (width) {
      case 1: return multiply<R, 1>(m, at, plane, out, to_plane, add);
      case 2: return multiply<R, 2>(m, at, plane, out, to_plane, add);
      case 3: return multiply<R, 3>(m, at, plane, out, to_plane, add);
      case 4: return multiply<R, POINTS < 4 ? 1 : 4>(m, at, plane, out, to_plane, add);
      case 5: return multiply<R, POINTS < 5 ? 1 : 5>(m, at, plane, out, to_plane, add);
      default: return multiply<R, POINTS>(m, at, plane, out, to_plane, add);
    }
  });
}

inline void collect(const float* from, std::int64_t from_plane, std::int64_t depth, std::int64_t points, float* to) {
  cuts_of(points, [&](std::int64_t first, std::int64_t width) {
    for (std::int64_t d = 0; d < depth; ++d) {
      const float* at = from + d * from_plane + first * LANES;
      for (std::int64_t k = 0; k < width; ++k, to += LANES) Lanes::load(at + k * LANES).store(to);
    }
  });
}

// The same for any number of rows, PLANES at a time.
GOSSAMER_INLINE void multiply_rows(Small m, std::int64_t rows, const float* from, std::int64_t from_plane, float* to,
                                   std::int64_t to_plane, std::int64_t points, bool add) {
  for (; rows >= PLANES; rows -= PLANES, m.entries += PLANES * m.row_step, to += PLANES * to_plane) {
    multiply_line<PLANES>(m, from, from_plane, to, to_plane, points, add);
  }
  for (; rows > 0; --rows, m.entries += m.row_step, to += to_plane) {
    multiply_line<1>(m, from, from_plane, to, to_plane, points, add);
  }
}

template <int K>
GOSSAMER_INLINE void gather(const float* filter, const Tap* taps, std::int64_t many, const float* from,
                            std::int64_t step, float* to, std::int64_t to_step) {
  Lanes total[K];
  for (int k = 0; k < K; ++k) total[k] = Lanes::all(0.0f);
  for (std::int64_t t = 0; t < many; ++t) {
    const float value = filter[taps[t].number];
    if (value == 0.0f) continue;  // filters of one tap each have many
    const Lanes factor = Lanes::all(value);
    const float* at = from + taps[t].offset;
    for (int k = 0; k < K; ++k) total[k].add_product(factor, Lanes::load(at + k * step));
  }
  for (int k = 0; k < K; ++k) total[k].store(to + k * to_step);
}

// A line of points: each is the sum of what its taps read, with the factors of the filter.
void gather_line(const float* filter, const Tap* taps, std::int64_t many, const float* from, std::int64_t step,
                 float* to, std::int64_t to_step, std::int64_t points) {
  const std::int64_t cuts = pieces(points, SPAN);
  for (std::int64_t c = 0, width; c < cuts; ++c, from += width * step, to += width * to_step) {
    width = points / cuts + (c < points % cuts);
    switch (width) {
      case 1: gather<1>(filter, taps, many, from, step, to, to_step); break;
      case 2: gather<2>(filter, taps, many, from, step, to, to_step); break;
      case 3: gather<3>(filter, taps, many, from, step, to, to_step); break;
      case 4: gather<SPAN < 4 ? 1 : 4>(filter, taps, many, from, step, to, to_step); break;
      case 5: gather<SPAN < 5 ? 1 : 5>(filter, taps, many, from, step, to, to_step); break;
      case 6: gather<SPAN < 6 ? 1 : 6>(filter, taps, many, from, step, to, to_step); break;
      case 7: gather<SPAN < 7 ? 1 : 7>(filter, taps, many, from, step, to, to_step); break;
      default: gather<SPAN>(filter, taps, many, from, step, to, to_step);
    }
  }
}

}  // namespace
}  // namespace gossamer
