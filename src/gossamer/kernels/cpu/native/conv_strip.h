// How a convolution reads its input: strips of output rows, and copies of what they need with the padding written out.
//
// A copy holds, for each channel, [row phase][row][column phase][column][16]. A phase collects the positions with one
// remainder modulo the stride, so that neighbouring outputs read neighbouring positions whatever the stride, and
// positions that no tap reads are left out.
#pragma once
#include <cstring>

#include "index.h"
#include "kernels.h"
#include "lanes.h"

namespace gossamer {
namespace {

inline std::int64_t larger(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// One spatial axis. Output position o reads, for tap k, input position o * stride + k * dilation - pad.
struct Axis {
  std::int64_t size, out, taps, stride, pad, dilation;
  std::int64_t period;  // taps k and k + period share a phase
  std::int64_t phases;
  std::int64_t reach;   // positions of a phase read beyond those of the first tap

  std::int64_t start(std::int64_t phase) const { return phase * dilation % stride - pad; }
  std::int64_t phase(std::int64_t tap) const { return tap % period; }
  std::int64_t shift(std::int64_t tap) const { return tap * dilation / stride; }
};

inline Axis axis(std::int64_t size, std::int64_t out, std::int64_t taps, std::int64_t stride, std::int64_t pad,
                 std::int64_t dilation) {
  std::int64_t a = stride, b = dilation;
  while (b) {
    const std::int64_t rest = a % b;
    a = b, b = rest;
  }
  const std::int64_t period = stride / a;
  return {size, out, taps, stride, pad, dilation, period, smaller(taps, period), (taps - 1) * dilation / stride};
}

struct Plan {
  Axis vertical, horizontal;
  std::int64_t tiles, taps, in_channels, out_channels, group_channels, group_rows;
  std::int64_t block_channels;  // channels of a column block
  bool direct;                  // the input is read in place: 1x1, stride 1, unpadded, channels spread over cache sets
  std::int64_t strip;           // output rows of a strip
  std::int64_t line, channel;   // floats from row to row and from channel to channel of what the kernels read

  std::int64_t strips() const { return pieces(vertical.out, strip); }
  std::int64_t image() const { return vertical.size * horizontal.size * LANES; }
  std::int64_t out_line() const { return horizontal.out * LANES; }
  std::int64_t out_image() const { return vertical.out * out_line(); }
  std::int64_t rows() const { return strip + vertical.reach; }             // of a phase of a copy
  std::int64_t columns() const { return horizontal.out + horizontal.reach; }
  std::int64_t offset(std::int64_t channel_, std::int64_t tap) const {
    const std::int64_t i = tap / horizontal.taps, j = tap % horizontal.taps;
    const std::int64_t row = vertical.phase(i) * rows() + vertical.shift(i);
    const std::int64_t column = horizontal.phase(j) * columns() + horizontal.shift(j);
    return channel_ * channel + row * line + column * LANES;
  }
};

constexpr std::int64_t LARGEST_OFFSET = std::int64_t{1} << 31;
constexpr std::int64_t CONFLICT = 16;  // lines: channels this far apart would share few of the 64 sets of an L1 cache

// A 1x1 convolution has no neighbours: its image may be cut into lines at will. Those of 5 to 8 positions are fastest.
inline void reshape_points(Axis& vertical, Axis& horizontal) {
  const std::int64_t points = vertical.out * horizontal.out;
  std::int64_t width = 8;
  while (width > 4 && points % width) --width;
  if (width == 4) width = points;
  vertical = axis(points / width, points / width, 1, 1, 0, 1);
  horizontal = axis(width, width, 1, 1, 0, 1);
}

inline Plan plan(const Geometry& g, const Header& header) {
  Plan p;
  p.vertical = axis(g.height, g.out_height, g.kernel_height, g.stride_height, g.pad_height, g.dilation_height);
  p.horizontal = axis(g.width, g.out_width, g.kernel_width, g.stride_width, g.pad_width, g.dilation_width);
  p.tiles = g.tiles, p.in_channels = g.in_channels, p.out_channels = g.out_channels;
  p.taps = g.kernel_height * g.kernel_width;
  p.group_channels = g.in_channels / g.groups, p.group_rows = g.out_channels / g.groups;
  p.block_channels = smaller(header.column_block / p.taps, p.group_channels);
  const bool dense = g.stride_height == 1 && g.stride_width == 1 && g.pad_height == 0 && g.pad_width == 0;
  const bool points = p.taps == 1 && dense;
  if (points) reshape_points(p.vertical, p.horizontal);
  p.direct = points && g.height * g.width % CONFLICT != 0 && g.in_channels * p.image() < LARGEST_OFFSET;
  return p;
}

// Sets the height of the strips: at most `most` rows, all about equally high.
inline void cut(Plan& p, std::int64_t most) {
  const std::int64_t strips = pieces(p.vertical.out, larger(1, smaller(most, p.vertical.out)));
  p.strip = pieces(p.vertical.out, strips);
  p.line = (p.direct ? 1 : p.horizontal.phases) * p.columns() * LANES;
  const std::int64_t lines = p.vertical.phases * p.rows() * p.line / LANES;
  p.channel = p.direct ? p.image() : (lines % CONFLICT ? lines : lines + CONFLICT / 2) * LANES;
}

// Visits the lines of a copy of one channel: body(row of its phase, offset in the copy, offset in the image, columns,
// step in the image), with an offset of -1 in the image for columns in the padding.
template <class Body>
GOSSAMER_INLINE void lines_of(const Plan& p, std::int64_t first_row, Body body) {
  const Axis &v = p.vertical, &h = p.horizontal;
  const std::int64_t columns = p.columns();
  for (std::int64_t pv = 0; pv < v.phases; ++pv) {
    for (std::int64_t r = 0; r < p.rows(); ++r) {
      const std::int64_t row = (first_row + r) * v.stride + v.start(pv);
      for (std::int64_t ph = 0; ph < h.phases; ++ph) {
        const std::int64_t to = (pv * p.rows() + r) * p.line + ph * columns * LANES, start = h.start(ph);
        std::int64_t low = start < 0 ? smaller(columns, pieces(-start, h.stride)) : 0;
        std::int64_t high = start < h.size ? smaller(columns, pieces(h.size - start, h.stride)) : 0;
        if (row < 0 || row >= v.size || high <= low) low = high = columns;
        const std::int64_t from = (row * h.size + start + low * h.stride) * LANES;
        if (low > 0) body(r, to, -1, low, 0);
        if (high > low) body(r, to + low * LANES, from, high - low, h.stride * LANES);
        if (columns > high) body(r, to + high * LANES, -1, columns - high, 0);
      }
    }
  }
}

inline void copy_channel(const Plan& p, std::int64_t first_row, const float* image, float* copy) {
  const auto line = [=](std::int64_t, std::int64_t to, std::int64_t from, std::int64_t columns, std::int64_t step) {
    const Lanes zero = Lanes::all(0.0f);
    for (std::int64_t c = 0; c < columns; ++c) {
      (from < 0 ? zero : Lanes::load(image + from + c * step)).store(copy + to + c * LANES);
    }
  };
  lines_of(p, first_row, line);
}

// Adds a copy to the image. Rows that no strip before this one has reached are written instead.
inline void add_channel(const Plan& p, std::int64_t first_row, const float* copy, float* image) {
  const std::int64_t reach = first_row > 0 ? p.vertical.reach : 0;
  const auto line = [=](std::int64_t row, std::int64_t from, std::int64_t to, std::int64_t columns, std::int64_t step) {
    if (to < 0) return;
    for (std::int64_t c = 0; c < columns; ++c) {
      Lanes total = Lanes::load(copy + from + c * LANES);
      if (row < reach) total.add(Lanes::load(image + to + c * step));
      total.store(image + to + c * step);
    }
  };
  lines_of(p, first_row, line);
}

// Whether the strips of a plan reach every position of the image.
inline bool covers(const Axis& axis) {
  bool all = axis.phases == axis.stride;
  for (std::int64_t phase = 0; phase < axis.phases; ++phase) {
    all = all && axis.start(phase) + (axis.out + axis.reach) * axis.stride >= axis.size;
  }
  return all;
}

}  // namespace
}  // namespace gossamer
