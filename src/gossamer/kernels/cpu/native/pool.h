// Maximum pooling of packed activations: (planes, height, width, 16), the planes being tiles x channels.
#pragma once
#include <cstring>

#include "kernels.h"
#include "lanes.h"

namespace gossamer {
namespace {

typedef std::int32_t Places __attribute__((vector_size(WIDTH * 4)));
typedef float Values __attribute__((vector_size(WIDTH * 4)));

struct Best {
  Values value[PARTS];
  Places at[PARTS];

  // As torch: the first of equal values wins, and NaN wins always.
  GOSSAMER_INLINE void see(const float* values, std::int32_t here, bool first) {
    for (int i = 0; i < PARTS; ++i) {
      const Values seen = *reinterpret_cast<const Part*>(values + i * WIDTH);
      const Places place = here - Places{};
      const Places better = first ? ~Places{} : Places((seen > value[i]) | (seen != seen));
      value[i] = better ? seen : value[i];
      at[i] = better ? place : at[i];
    }
  }
};

// places: position of the maximum in its plane.
GOSSAMER_INLINE void pool_window(const float* plane, const Window& w, std::int64_t y, std::int64_t x, float* out,
                                 std::int64_t* places) {
  Best best{};
  bool first = true;
  for (std::int64_t i = 0; i < w.kernel_height; ++i) {
    const std::int64_t row = y * w.stride_height - w.pad_height + i * w.dilation_height;
    if (row < 0 || row >= w.height) continue;
    for (std::int64_t j = 0; j < w.kernel_width; ++j) {
      const std::int64_t column = x * w.stride_width - w.pad_width + j * w.dilation_width;
      if (column < 0 || column >= w.width) continue;
      const std::int64_t here = row * w.width + column;
      best.see(plane + here * LANES, static_cast<std::int32_t>(here), first);
      first = false;
    }
  }
  std::int32_t at[LANES];
  std::memcpy(out, best.value, sizeof(best.value));
  std::memcpy(at, best.at, sizeof(best.at));
  for (int lane = 0; lane < LANES; ++lane) places[lane] = at[lane];
}

void max_pool_forward(const float* x, float* out, std::int64_t* places, std::int64_t planes, const Window* window,
                      int threads) {
  const Window w = *window;
  const std::int64_t in_plane = w.height * w.width * LANES, out_plane = w.out_height * w.out_width * LANES;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t plane = 0; plane < planes; ++plane) {
    std::int64_t to = plane * out_plane;
    for (std::int64_t y = 0; y < w.out_height; ++y) {
      for (std::int64_t column = 0; column < w.out_width; ++column, to += LANES) {
        pool_window(x + plane * in_plane, w, y, column, out + to, places + to);
      }
    }
  }
}

void max_pool_backward(const float* slope, const std::int64_t* places, float* dx, std::int64_t planes,
                       const Window* window, int threads) {
  const Window w = *window;
  const std::int64_t in_plane = w.height * w.width * LANES, out_plane = w.out_height * w.out_width * LANES;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t plane = 0; plane < planes; ++plane) {
    float* to = dx + plane * in_plane;
    std::memset(to, 0, static_cast<std::size_t>(in_plane) * sizeof(float));
    for (std::int64_t from = plane * out_plane; from < (plane + 1) * out_plane; from += LANES) {
      for (int lane = 0; lane < LANES; ++lane) to[places[from + lane] * LANES + lane] += slope[from + lane];
    }
  }
}

}  // namespace
}  // namespace gossamer
