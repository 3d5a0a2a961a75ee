// Sixteen vectors at a time out of a tensor [outer][features][inner] into rows of sixteen lanes, and back.
#pragma once
#include "index.h"
#include "lanes.h"

namespace gossamer {
namespace {

typedef std::int32_t Order __attribute__((vector_size(WIDTH * 4)));

// The first, or second, halves of a and b in turns: a0 b0 a1 b1 ...
template <int HALF>
GOSSAMER_INLINE Part zip(const Part& a, const Part& b) {
  constexpr int FROM = HALF * WIDTH / 2;
#if defined(__clang__)
  Part out;
  for (int i = 0; i < WIDTH / 2; ++i) {
    out[2 * i] = a[FROM + i];
    out[2 * i + 1] = b[FROM + i];
  }
  return out;
#else
  Order order;
  for (int i = 0; i < WIDTH; ++i) order[i] = FROM + i / 2 + i % 2 * WIDTH;
  return __builtin_shuffle(a, b, order);
#endif
}

// Rows become columns: four times, rows i and i + 8 are zipped into rows 2 i and 2 i + 1.
GOSSAMER_INLINE void transpose(Lanes* rows) {
#pragma GCC unroll 4
  for (int turn = 0; turn < 4; ++turn) {
    Lanes zipped[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES / 2; ++i) {
      for (int p = 0; p < PARTS; ++p) {
        const Part &a = rows[i].part[p], &b = rows[i + 8].part[p];
        zipped[2 * i + 2 * p / PARTS].part[2 * p % PARTS] = zip<0>(a, b);
        zipped[2 * i + (2 * p + 1) / PARTS].part[(2 * p + 1) % PARTS] = zip<1>(a, b);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) rows[i] = zipped[i];
  }
}

GOSSAMER_INLINE Lanes scaled(Lanes a, float factor) {
  for (int p = 0; p < PARTS; ++p) a.part[p] *= factor;
  return a;
}

// Up to sixteen vectors of a tensor: where each begins, how far apart its entries are. Lanes beyond the last vector
// repeat the first one.
struct Vectors {
  std::int64_t start[LANES], step;
  int count;
  bool adjacent;  // sixteen neighbours: an entry of all is one load

  Vectors(std::int64_t first, std::int64_t vectors, std::int64_t features, std::int64_t inner) : step(inner) {
    count = static_cast<int>(smaller(LANES, vectors - first));
    for (int lane = 0; lane < LANES; ++lane) {
      const std::int64_t vector = first + (lane < count ? lane : 0);
      start[lane] = vector / inner * features * inner + vector % inner;
    }
    adjacent = count == LANES && start[LANES - 1] - start[0] == LANES - 1 && inner > 1;
  }
};

// Entry i of the vectors, times `scale` and the i-th of `factors` (or null), becomes row place(i), for i < count.
template <class Place>
void gather(const float* x, const Vectors& v, std::int64_t count, float scale, const float* factors, float* rows,
            const Place& place) {
  const auto factor = [&](std::int64_t i) { return factors ? factors[i] * scale : scale; };
  if (v.adjacent) {
    for (std::int64_t i = 0; i < count; ++i) {
      scaled(Lanes::load(x + v.start[0] + i * v.step), factor(i)).store(rows + place(i) * LANES);
    }
  } else if (v.step == 1 && count >= LANES) {
    for (std::int64_t next = 0; next < count; next += LANES) {
      const std::int64_t i = smaller(next, count - LANES);  // the last block may repeat some of the one before
      Lanes block[LANES];
      for (int lane = 0; lane < LANES; ++lane) block[lane] = Lanes::load(x + v.start[lane] + i);
      transpose(block);
      for (int j = 0; j < LANES; ++j) scaled(block[j], factor(i + j)).store(rows + place(i + j) * LANES);
    }
  } else {
    for (std::int64_t i = 0; i < count; ++i) {
      float* to = rows + place(i) * LANES;
      for (int lane = 0; lane < LANES; ++lane) to[lane] = x[v.start[lane] + i * v.step] * factor(i);
    }
  }
}

// The reverse.
template <class Place>
void scatter(const float* rows, const Place& place, std::int64_t count, const float* factors, float* x,
             const Vectors& v) {
  const auto row = [&](std::int64_t i) {
    return scaled(Lanes::load(rows + place(i) * LANES), factors ? factors[i] : 1.0f);
  };
  if (v.adjacent) {
    for (std::int64_t i = 0; i < count; ++i) row(i).store(x + v.start[0] + i * v.step);
  } else if (v.step == 1 && count >= LANES) {
    for (std::int64_t next = 0; next < count; next += LANES) {
      const std::int64_t i = smaller(next, count - LANES);
      Lanes block[LANES];
      for (int j = 0; j < LANES; ++j) block[j] = row(i + j);
      transpose(block);
      for (int lane = 0; lane < v.count; ++lane) block[lane].store(x + v.start[lane] + i);
    }
  } else {
    for (std::int64_t i = 0; i < count; ++i) {
      float entry[LANES];
      row(i).store(entry);
      for (int lane = 0; lane < v.count; ++lane) x[v.start[lane] + i * v.step] = entry[lane];
    }
  }
}

}  // namespace
}  // namespace gossamer
