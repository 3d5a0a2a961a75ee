// Products of a sparse weight with sparse activations, which multiply nothing by zero.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"

#define GOSSAMER_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using gossamer::Geometry;
using std::int64_t;

// The weight by columns: entry e of input channel c and tap t, for start[c * taps + t] <= e < start[c * taps + t + 1].
struct Columns {
  const int64_t* start;
  const std::int32_t* row;
  const float* value;
};

// Output place that each tap maps each input place of an axis to, or -1: size x taps.
std::vector<std::int32_t> targets(int64_t size, int64_t taps, int64_t pad, int64_t dilation, int64_t stride, int64_t out) {
  std::vector<std::int32_t> found(size * taps);
  for (int64_t at = 0; at < size; ++at) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t shifted = at + pad - tap * dilation;
      const bool meets = shifted >= 0 && shifted % stride == 0 && shifted / stride < out;
      found[at * taps + tap] = meets ? static_cast<std::int32_t>(shifted / stride) : -1;
    }
  }
  return found;
}

// y[row] += value * x for entries whose rows differ: four sums need not wait for one another.
inline void add(const std::int32_t* row, const float* value, int64_t count, float x, float* y) {
  int64_t e = 0;
  for (; e + 4 <= count; e += 4) {
    const float a = y[row[e]] + value[e] * x, b = y[row[e + 1]] + value[e + 1] * x;
    const float c = y[row[e + 2]] + value[e + 2] * x, d = y[row[e + 3]] + value[e + 3] * x;
    y[row[e]] = a;
    y[row[e + 1]] = b;
    y[row[e + 2]] = c;
    y[row[e + 3]] = d;
  }
  for (; e < count; ++e) y[row[e]] += value[e] * x;
}

// Adds what one input gives to its outputs; returns the number of multiplications. down, right: `targets` of its place.
inline int64_t spread(const Columns& w, const Geometry& g, float x, int64_t channel, const std::int32_t* down,
                      const std::int32_t* right, float* y) {
  int64_t products = 0;
  const int64_t* range = w.start + channel * g.kernel_height * g.kernel_width;
  for (int64_t i = 0; i < g.kernel_height; ++i, range += g.kernel_width) {
    if (down[i] < 0) continue;
    for (int64_t j = 0; j < g.kernel_width; ++j) {
      if (right[j] < 0) continue;
      const int64_t count = range[j + 1] - range[j];
      add(w.row + range[j], w.value + range[j], count, x, y + (down[i] * g.out_width + right[j]) * g.out_channels);
      products += count;
    }
  }
  return products;
}

void fill(const float* bias, int64_t places, int64_t channels, float* y) {
  for (int64_t at = 0; at < places; ++at, y += channels) {
    if (bias) {
      std::copy(bias, bias + channels, y);
    } else {
      std::fill(y, y + channels, 0.0f);
    }
  }
}

struct Targets {
  std::vector<std::int32_t> down, right;
};

// What some channels of one sample give.
int64_t sample(const Columns& w, const Geometry& g, const Targets& to, int64_t first, int64_t last, const float* x,
               float* y) {
  int64_t products = 0;
  for (int64_t row = 0; row < g.height; ++row) {
    const std::int32_t* down = to.down.data() + row * g.kernel_height;
    for (int64_t column = 0; column < g.width; ++column, x += g.in_channels) {
      const std::int32_t* right = to.right.data() + column * g.kernel_width;
      for (int64_t channel = first; channel < last; ++channel) {
        if (x[channel] != 0.0f) products += spread(w, g, x[channel], channel, down, right, y);
      }
    }
  }
  return products;
}

// Entries that stay in the second-level cache while all samples of a thread use them.
constexpr int64_t ENTRIES = 1 << 15;

int64_t block_end(const Columns& w, const Geometry& g, int64_t first) {
  const int64_t taps = g.kernel_height * g.kernel_width;
  int64_t last = first + 1;
  while (last < g.in_channels && w.start[(last + 1) * taps] - w.start[first * taps] <= ENTRIES) ++last;
  return last;
}

}  // namespace

// x [tiles: samples][height][width][channels] -> y, laid out alike; returns the number of multiplications.
GOSSAMER_EXPORT int64_t gossamer_skip_forward(const int64_t* start, const std::int32_t* row, const float* value,
                                              const float* bias, const float* x, float* y, const Geometry* geometry,
                                              int threads) {
  const Geometry g = *geometry;
  const Columns w{start, row, value};
  const int64_t in = g.in_channels * g.height * g.width, places = g.out_height * g.out_width;
  const int64_t out = g.out_channels * places, chunk = (g.tiles + threads - 1) / threads;
  const Targets places_of{
      targets(g.height, g.kernel_height, g.pad_height, g.dilation_height, g.stride_height, g.out_height),
      targets(g.width, g.kernel_width, g.pad_width, g.dilation_width, g.stride_width, g.out_width)};
  int64_t products = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : products)
  for (int64_t from = 0; from < g.tiles; from += chunk) {
    const int64_t to = std::min(from + chunk, g.tiles);
    fill(bias, (to - from) * places, g.out_channels, y + from * out);
    for (int64_t first = 0, last; first < g.in_channels; first = last) {
      last = block_end(w, g, first);
      for (int64_t n = from; n < to; ++n) products += sample(w, g, places_of, first, last, x + n * in, y + n * out);
    }
  }
  return products;
}
