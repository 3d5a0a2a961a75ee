// What a rewiring does to long lists of positions: read them off an index, compare two of them, find high scores.
#include <algorithm>
#include <cstring>
#include <vector>

#include "index.h"

#define GOSSAMER_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace gossamer;
using std::int32_t;
using std::int64_t;
using std::uint16_t;
using std::uint8_t;

// Whether a product with zero is zero everywhere: not so of infinities and NaN.
bool finite(const float* score, int64_t count) {
  float check[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int j = 0; j < 8; ++j) check[j] += score[i + j] * 0.0f;
  }
  for (; i < count; ++i) check[0] += score[i] * 0.0f;
  float all = 0.0f;
  for (float each : check) all += each;
  return all == 0.0f;
}

}  // namespace

// Flat positions in ascending order, and the place of each among the stored values.
GOSSAMER_EXPORT void gossamer_index_ascending(const uint8_t* bytes, int64_t* flat, int64_t* place, int threads) {
  const Index index = read_index(bytes);
  const Header& h = *index.header;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t rb = 0; rb < index.row_blocks; ++rb) {
    std::vector<int64_t> next(static_cast<size_t>(h.row_block) + 1, 0);
    rows_of(index, rb, [&](int row, int64_t, int count, int64_t) { next[static_cast<size_t>(row) + 1] += count; });
    next[0] = index.blocks[rb * index.column_blocks].first;
    for (size_t row = 1; row < next.size(); ++row) next[row] += next[row - 1];
    rows_of(index, rb, [&](int row, int64_t value, int count, int64_t cb) {
      int64_t& to = next[static_cast<size_t>(row)];
      const int64_t start = (rb * h.row_block + row) * h.columns + cb * h.column_block;
      for (int i = 0; i < count; ++i, ++to) flat[to] = start + index.columns[value + i], place[to] = value + i;
    });
  }
}

// Both lists of positions ascend; `order` is that in which the second are stored, as gossamer_index_build says. Writes, in
// that order, the place before, or -1 for what is in the second list alone.
GOSSAMER_EXPORT void gossamer_sources(const int64_t* before, const int64_t* before_place, int64_t before_count,
                                      const int64_t* after, const int64_t* order, int64_t after_count, int32_t* source,
                                      int threads) {
  std::vector<int32_t> found(static_cast<size_t>(after_count));
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static, 1)
    for (int part = 0; part < threads; ++part) {
      const int64_t first = after_count * part / threads, last = after_count * (part + 1) / threads;
      const int64_t* at = first < last ? std::lower_bound(before, before + before_count, after[first]) : before;
      for (int64_t j = first; j < last; ++j) {
        while (at < before + before_count && *at < after[j]) ++at;
        const bool held = at < before + before_count && *at == after[j];
        found[static_cast<size_t>(j)] = held ? static_cast<int32_t>(before_place[at - before]) : -1;
      }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < after_count; ++i) source[i] = found[static_cast<size_t>(order[i])];
  }
}

// What was at the sources, or `fill` where there is none.
GOSSAMER_EXPORT void gossamer_carry(const float* from, const int32_t* source, int64_t count, float fill, float* to,
                                    int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) to[i] = source[i] < 0 ? fill : from[source[i]];
}

// Numbers, ascending, of the scores above `limit` that are not in the ascending list `active`; returns how many, or -1
// if a score is not finite. `found` has room for all.
GOSSAMER_EXPORT int64_t gossamer_collect(const float* score, int64_t count, float limit, const int64_t* active,
                                         int64_t active_count, int64_t* found, int threads) {
  std::vector<int64_t> sizes(static_cast<size_t>(threads), 0);
  bool fine = true;
#pragma omp parallel for schedule(static, 1) num_threads(threads) reduction(&& : fine)
  for (int part = 0; part < threads; ++part) {
    const int64_t first = count * part / threads, last = count * (part + 1) / threads;
    fine = fine && finite(score + first, last - first);
    int64_t* to = found + first;
    for (int64_t i = first; i < last; ++i) {
      if (score[i] > limit) *to++ = i;
    }
    sizes[static_cast<size_t>(part)] = to - (found + first);
  }
  if (!fine) return -1;
  int64_t kept = 0, known = 0;
  for (int part = 0; part < threads; ++part) {
    const int64_t* from = found + count * part / threads;
    for (int64_t i = 0; i < sizes[static_cast<size_t>(part)]; ++i) {
      while (known < active_count && active[known] < from[i]) ++known;
      if (known == active_count || active[known] != from[i]) found[kept++] = from[i];
    }
  }
  return kept;
}

// Where the entries of two ascending lists without common entries lie in their union.
GOSSAMER_EXPORT void gossamer_merge(const int64_t* first, int64_t first_count, const int64_t* second,
                                    int64_t second_count, int64_t* first_at, int64_t* second_at) {
  int64_t i = 0;
  for (int64_t j = 0; j < second_count; ++j) {
    for (; i < first_count && first[i] < second[j]; ++i) first_at[i] = i + j;
    second_at[j] = i + j;
  }
  for (; i < first_count; ++i) first_at[i] = i + second_count;
}
