// Sixteen floats, in as many registers as the instruction set needs for them: 1 (AVX-512), 2 (AVX2), 4 (SSE, NEON).
// Everything is static or always inline, so that code of one instruction set cannot end up in the table of another.
#pragma once
#include <cstdint>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace gossamer {

constexpr int LANES = 16;

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int PARTS = LANES / WIDTH;

#define GOSSAMER_INLINE inline __attribute__((always_inline))

namespace {

typedef float Part __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

struct Lanes {
  Part part[PARTS];

  static GOSSAMER_INLINE Lanes load(const float* from) {
    Lanes out;
    for (int i = 0; i < PARTS; ++i) out.part[i] = *reinterpret_cast<const Part*>(from + i * WIDTH);
    return out;
  }
  static GOSSAMER_INLINE Lanes all(float value) {
    Lanes out;
    for (int i = 0; i < PARTS; ++i) out.part[i] = value - Part{};
    return out;
  }
  GOSSAMER_INLINE void store(float* to) const {
    for (int i = 0; i < PARTS; ++i) *reinterpret_cast<Part*>(to + i * WIDTH) = part[i];
  }
  GOSSAMER_INLINE void add(const Lanes& a) {
    for (int i = 0; i < PARTS; ++i) part[i] += a.part[i];
  }
  GOSSAMER_INLINE void add_product(const Lanes& a, const Lanes& b) {
    for (int i = 0; i < PARTS; ++i) part[i] += a.part[i] * b.part[i];
  }
};

// The sums of each of four times sixteen lanes. One after the other they add up in the same order as four at once.
#if defined(__AVX__)
GOSSAMER_INLINE __m256 eight_of(const Lanes& a) {
#if defined(__AVX512F__)
  const __m512 all = reinterpret_cast<__m512>(a.part[0]);
  return _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
#else
  return _mm256_add_ps(reinterpret_cast<__m256>(a.part[0]), reinterpret_cast<__m256>(a.part[1]));
#endif
}

GOSSAMER_INLINE void sums(const Lanes* a, float* out) {
  const __m256 ab = _mm256_hadd_ps(eight_of(a[0]), eight_of(a[1])), cd = _mm256_hadd_ps(eight_of(a[2]), eight_of(a[3]));
  const __m256 both = _mm256_hadd_ps(ab, cd);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
}
#else
GOSSAMER_INLINE void sums(const Lanes* a, float* out) {
  for (int i = 0; i < 4; ++i) {
    const Part four = (a[i].part[0] + a[i].part[2]) + (a[i].part[1] + a[i].part[3]);
    out[i] = (four[0] + four[1]) + (four[2] + four[3]);
  }
}
#endif

GOSSAMER_INLINE float sum(const Lanes& a) {
  Lanes four[4];
  float out[4];
  four[0] = a;
  four[1] = four[2] = four[3] = Lanes::all(0.0f);
  sums(four, out);
  return out[0];
}

}  // namespace
}  // namespace gossamer
