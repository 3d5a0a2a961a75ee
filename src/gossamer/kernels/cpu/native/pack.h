// Between row-major activations [batch][features] and packed ones [tiles][features][16].
#pragma once
#include "index.h"
#include "lanes.h"

namespace gossamer {
namespace {

constexpr std::int64_t STRIP = 256;  // features moved at a time: 16 KiB each of source and target

// to[j][i] = from[i][j] for sixteen by sixteen; rows are `from_row` and `to_row` floats apart.
#if defined(__AVX512F__)
GOSSAMER_INLINE void transpose(const float* from, std::int64_t from_row, float* to, std::int64_t to_row) {
  __m512 r[LANES], t[LANES];
  for (int i = 0; i < LANES; ++i) r[i] = _mm512_loadu_ps(from + i * from_row);
  for (int i = 0; i < LANES; i += 2) {  // pairs of rows, then fours of columns within each quarter
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]), t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < LANES; i += 4) {
    const __m512d a = _mm512_castps_pd(t[i]), b = _mm512_castps_pd(t[i + 1]);
    const __m512d c = _mm512_castps_pd(t[i + 2]), d = _mm512_castps_pd(t[i + 3]);
    r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c)), r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
    r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d)), r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
  }
  for (int i = 0; i < 4; ++i) {  // r[4 q + i]: column i of each quarter, rows 4 q to 4 q + 3
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88), t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_storeu_ps(to + i * to_row, _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88));
    _mm512_storeu_ps(to + (i + 4) * to_row, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88));
    _mm512_storeu_ps(to + (i + 8) * to_row, _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd));
    _mm512_storeu_ps(to + (i + 12) * to_row, _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd));
  }
}
#else
GOSSAMER_INLINE void transpose(const float* from, std::int64_t from_row, float* to, std::int64_t to_row) {
  for (int j = 0; j < LANES; ++j) {
    for (int i = 0; i < LANES; ++i) to[j * to_row + i] = from[i * from_row + j];
  }
}
#endif

void pack(const float* x, float* packed, std::int64_t batch, std::int64_t features, int threads) {
  const std::int64_t tiles = pieces(batch, LANES), strips = pieces(features, STRIP);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
  for (std::int64_t tile = 0; tile < tiles; ++tile) {
    for (std::int64_t strip = 0; strip < strips; ++strip) {
      const std::int64_t end = smaller(features, (strip + 1) * STRIP), rows = smaller(LANES, batch - tile * LANES);
      float* to = packed + tile * features * LANES;
      const float* from = x + tile * LANES * features;
      std::int64_t f = strip * STRIP;
      for (; rows == LANES && f + LANES <= end; f += LANES) transpose(from + f, features, to + f * LANES, LANES);
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
      for (; rows == LANES && f + LANES <= end; f += LANES) transpose(from + f * LANES, LANES, to + f, features);
      for (; f < end; ++f) {
        for (std::int64_t j = 0; j < rows; ++j) to[j * features + f] = from[f * LANES + j];
      }
    }
  }
}

}  // namespace
}  // namespace gossamer
