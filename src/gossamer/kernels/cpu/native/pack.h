// Between row-major activations [batch][features] and packed ones [tiles][features][16].
#pragma once
#include "index.h"
#include "lanes.h"

namespace gossamer {
namespace {

constexpr std::int64_t STRIP = 256;  // features moved at a time: 16 KiB each of source and target

void pack(const float* x, float* packed, std::int64_t batch, std::int64_t features, int threads) {
  const std::int64_t tiles = pieces(batch, LANES), strips = pieces(features, STRIP);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    for (std::int64_t strip = 0; strip < strips; ++strip) {
      const std::int64_t end = smaller(features, (strip + 1) * STRIP), rows = smaller(LANES, batch - tile * LANES);
      float* to = packed + tile * features * LANES;
      const float* from = x + tile * LANES * features;
      std::int64_t f = strip * STRIP;
      for (; rows == LANES && f + LANES <= end; f += LANES) {
        for (int i = 0; i < LANES; ++i) {
          for (int j = 0; j < LANES; ++j) to[(f + i) * LANES + j] = from[j * features + f + i];
        }
      }
      for (; f < end; ++f) {
        for (std::int64_t j = 0; j < rows; ++j) to[f * LANES + j] = from[j * features + f];
        for (std::int64_t j = rows; j < LANES; ++j) to[f * LANES + j] = 0.0f;
      }
    }
  }
}

void unpack(const float* packed, float* x, std::int64_t batch, std::int64_t features, int threads) {
  const std::int64_t tiles = pieces(batch, LANES), strips = pieces(features, STRIP);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    for (std::int64_t strip = 0; strip < strips; ++strip) {
      const std::int64_t end = smaller(features, (strip + 1) * STRIP), rows = smaller(LANES, batch - tile * LANES);
      const float* from = packed + tile * features * LANES;
      float* to = x + tile * LANES * features;
      std::int64_t f = strip * STRIP;
      for (; f + LANES <= end; f += LANES) {
        for (std::int64_t j = 0; j < rows; ++j) {
          for (int i = 0; i < LANES; ++i) to[j * features + f + i] = from[(f + i) * LANES + j];
        }
      }
      for (; f < end; ++f) {
        for (std::int64_t j = 0; j < rows; ++j) to[j * features + f] = from[f * LANES + j];
      }
    }
  }
}

}  // namespace
}  // namespace gossamer
