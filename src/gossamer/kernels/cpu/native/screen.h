// The largest entries of a product left^T right that is never kept: where they may be, and what exactly they are.
#pragma once
#include <cstring>
#include <vector>

#include "index.h"
#include "lanes.h"

namespace gossamer {
namespace {

// Columns of a row in which |value| + slack * column_slack exceeds the limit; `to` has room for 16 more than there are.
GOSSAMER_INLINE std::int64_t exceeding(const float* row, std::int64_t columns, float slack, const float* column_slack,
                                       float limit, std::uint32_t* to) {
  std::int64_t i = 0, count = 0;
#if defined(__AVX512F__)
  const __m512 own = _mm512_set1_ps(slack), least = _mm512_set1_ps(limit);
  __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; i + 16 <= columns; i += 16, at = _mm512_add_epi32(at, _mm512_set1_epi32(16))) {
    const __m512 size = _mm512_abs_ps(_mm512_loadu_ps(row + i));
    const __m512 most = _mm512_fmadd_ps(own, _mm512_loadu_ps(column_slack + i), size);
    const __mmask16 found = _mm512_cmp_ps_mask(most, least, _CMP_GT_OQ);
    _mm512_storeu_si512(to + count, _mm512_maskz_compress_epi32(found, at));
    count += __builtin_popcount(found);
  }
#endif
  for (; i < columns; ++i) {
    to[count] = static_cast<std::uint32_t>(i);
    count += __builtin_fabsf(row[i]) + slack * column_slack[i] > limit;
  }
  return count;
}

inline std::int64_t screen_rows(const float* values, const Screen& s, std::int64_t first, std::int64_t last,
                                std::int64_t* found) {
  std::vector<std::uint32_t> where(static_cast<std::size_t>(s.columns) + 16);
  std::int64_t* to = found;
  for (std::int64_t row = first; row < last; ++row) {
    const std::int64_t start = (s.first_row + row) * s.columns;
    const std::int64_t count = exceeding(values + row * s.columns, s.columns, s.row_slack[s.first_row + row],
                                         s.column_slack, s.limit, where.data());
    for (std::int64_t i = 0; i < count; ++i) *to++ = start + where[static_cast<std::size_t>(i)];
  }
  return to - found;
}

std::int64_t screen(const float* values, const Screen* given, std::int64_t* found, int threads) {
  const Screen& s = *given;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(threads), 0);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int part = 0; part < threads; ++part) {
    const std::int64_t first = s.rows * part / threads, last = s.rows * (part + 1) / threads;
    std::int64_t* to = found + first * (s.columns + 1);
    counts[static_cast<std::size_t>(part)] = screen_rows(values, s, first, last, to);
  }
  std::int64_t all = 0;
  for (int part = 0; part < threads; ++part) {
    const std::int64_t count = counts[static_cast<std::size_t>(part)];
    std::memmove(found + all, found + s.rows * part / threads * (s.columns + 1), static_cast<std::size_t>(count) * 8);
    all += count;
  }
  return all;
}

// left [rows][samples], right [columns][samples]: the product at some positions, in float32.
void sampled_product(const float* left, const float* right, std::int64_t samples, std::int64_t columns,
                     const std::int64_t* positions, std::int64_t count, float* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t row = positions[i] / columns;
    const float *a = left + row * samples, *b = right + (positions[i] - row * columns) * samples;
    Lanes even = Lanes::all(0.0f), odd = even;
    std::int64_t s = 0;
    for (; s + 2 * LANES <= samples; s += 2 * LANES) {
      even.add_product(Lanes::load(a + s), Lanes::load(b + s));
      odd.add_product(Lanes::load(a + s + LANES), Lanes::load(b + s + LANES));
    }
    even.add(odd);
    float total = sum(even);
    for (; s < samples; ++s) total += a[s] * b[s];
    out[i] = total;
  }
}

}  // namespace
}  // namespace gossamer
