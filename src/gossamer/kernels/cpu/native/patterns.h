// The best 2:4 patterns: two of four inputs, two of four outputs, or both ("transposable", 4 x 4 tiles). A tile, or a
// group of four, lies in one lane. The definition is kernels/patterns.py; the bits are the same.
//
// A weight is [rows][inputs][positions]. The groups of a row are numbered block * positions + position, where a block
// is four consecutive inputs: entry c of group (b, k) is at (4 b + c) * positions + k.
#pragma once
#include <cmath>
#include <cstring>

#include "kernels.h"
#include "lanes.h"
#include "vectors.h"

namespace gossamer {
namespace {

typedef std::int32_t Word __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));  // four bytes of 0 or 1

constexpr int CHOICES = 36, VECTORS = 19;
constexpr int PAIR[6][2] = {{0, 1}, {0, 2}, {0, 3}, {1, 2}, {1, 3}, {2, 3}};

// The choices of a half tile by what they leave in each column: see the definition.
struct Choices {
  int first[VECTORS + 1] = {}, member[CHOICES] = {}, bits[CHOICES] = {}, partner[VECTORS] = {};

  static constexpr int columns(int choice) {  // a byte for each column
    const int* upper = PAIR[choice / 6];
    const int* lower = PAIR[choice % 6];
    return (1 << 8 * upper[0]) + (1 << 8 * upper[1]) + (1 << 8 * lower[0]) + (1 << 8 * lower[1]);
  }
  constexpr Choices() {
    int seen[VECTORS] = {}, vectors = 0;
    for (int choice = 0; choice < CHOICES; ++choice) {
      bool known = false;
      for (int v = 0; v < vectors; ++v) known = known || seen[v] == columns(choice);
      if (!known) seen[vectors++] = columns(choice);
    }
    int at = 0;
    for (int v = 0; v < VECTORS; ++v) {
      first[v] = at;
      for (int choice = 0; choice < CHOICES; ++choice) {
        if (columns(choice) == seen[v]) member[at++] = choice;
      }
      for (int other = 0; other < VECTORS; ++other) {
        if (seen[v] + seen[other] == 0x02020202) partner[v] = other;
      }
    }
    first[VECTORS] = at;
    for (int choice = 0; choice < CHOICES; ++choice) {
      for (int row = 0; row < 2; ++row) {
        const int pair = row ? choice % 6 : choice / 6;
        bits[choice] |= (1 << (4 * row + PAIR[pair][0])) | (1 << (4 * row + PAIR[pair][1]));
      }
    }
  }
};

constexpr Choices TABLE{};

struct Quad {
  Part entry[4];
};

// Every second entry of a and b.
template <int ODD>
GOSSAMER_INLINE Part unzip(const Part& a, const Part& b) {
#if defined(__clang__)
  Part out;
  for (int i = 0; i < WIDTH; ++i) out[i] = 2 * i + ODD < WIDTH ? a[2 * i + ODD] : b[2 * i + ODD - WIDTH];
  return out;
#else
  Order order;
  for (int i = 0; i < WIDTH; ++i) order[i] = 2 * i + ODD;
  return __builtin_shuffle(a, b, order);
#endif
}

// Some groups of a row: WIDTH of them from `group` on, of which `count` exist. The others repeat the first.
struct Groups {
  std::int64_t start[WIDTH], step;
  int count;
  bool adjacent;

  GOSSAMER_INLINE Groups(std::int64_t group, std::int64_t groups, std::int64_t positions) : step(positions) {
    count = static_cast<int>(smaller(WIDTH, groups - group));
    adjacent = positions == 1 && count == WIDTH;
    for (int lane = 0; lane < WIDTH; ++lane) {
      const std::int64_t at = group + (lane < count ? lane : 0);
      start[lane] = positions == 1 ? 4 * at : at / positions * 4 * positions + at % positions;
    }
  }

  GOSSAMER_INLINE Quad load(const float* row) const {
    Quad out;
    if (adjacent) {
      Part v[4];
      for (int i = 0; i < 4; ++i) v[i] = *reinterpret_cast<const Part*>(row + start[0] + i * WIDTH);
      const Part even[2] = {unzip<0>(v[0], v[1]), unzip<0>(v[2], v[3])};
      const Part odd[2] = {unzip<1>(v[0], v[1]), unzip<1>(v[2], v[3])};
      out.entry[0] = unzip<0>(even[0], even[1]);
      out.entry[1] = unzip<0>(odd[0], odd[1]);
      out.entry[2] = unzip<1>(even[0], even[1]);
      out.entry[3] = unzip<1>(odd[0], odd[1]);
      return out;
    }
    float staged[4][WIDTH];
    for (int lane = 0; lane < WIDTH; ++lane) {
      for (int c = 0; c < 4; ++c) staged[c][lane] = row[start[lane] + c * step];
    }
    std::memcpy(&out, staged, sizeof(out));
    return out;
  }

  GOSSAMER_INLINE Word load(const std::uint8_t* row) const {
    if (adjacent) return *reinterpret_cast<const Word*>(row + start[0]);
    std::uint8_t staged[WIDTH][4];
    for (int lane = 0; lane < WIDTH; ++lane) {
      for (int c = 0; c < 4; ++c) staged[lane][c] = row[start[lane] + c * step];
    }
    Word out;
    std::memcpy(&out, staged, sizeof(out));
    return out;
  }

  GOSSAMER_INLINE void store(const Word& word, std::uint8_t* row) const {
    if (adjacent) {
      *reinterpret_cast<Word*>(row + start[0]) = word;
      return;
    }
    std::uint8_t staged[WIDTH][4];
    std::memcpy(staged, &word, sizeof(word));
    for (int lane = 0; lane < count; ++lane) {
      for (int c = 0; c < 4; ++c) row[start[lane] + c * step] = staged[lane][c];
    }
  }
};

GOSSAMER_INLINE Word every(std::int32_t value) { return value - Word{}; }

GOSSAMER_INLINE Part magnitude(const Part& a) { return reinterpret_cast<Part>(reinterpret_cast<Word>(a) & 0x7fffffff); }

// x where byte c of the word is 1, else +0.
GOSSAMER_INLINE Part where(const Word& word, int c, const Part& x) {
  return reinterpret_cast<Part>(-(word >> (8 * c) & 1) & reinterpret_cast<Word>(x));
}

struct Choice {
  Part value;
  Word bits;
};

// The best choice of two rows among those of one vector; pairs: the sums of the six pairs of each row.
GOSSAMER_INLINE Choice best_choice(const Part* upper, const Part* lower, int vector) {
  const int* member = TABLE.member;
  const int from = TABLE.first[vector], to = TABLE.first[vector + 1];
  Choice best{upper[member[from] / 6] + lower[member[from] % 6], every(TABLE.bits[member[from]])};
#pragma GCC unroll 6
  for (int i = from + 1; i < to; ++i) {
    const Part value = upper[member[i] / 6] + lower[member[i] % 6];
    const Word better = value > best.value;
    best.value = better ? value : best.value;
    best.bits = better ? every(TABLE.bits[member[i]]) : best.bits;
  }
  return best;
}

GOSSAMER_INLINE Choice best_tile(const Quad* row) {
  Part pairs[4][6];
  for (int i = 0; i < 4; ++i) {
    for (int p = 0; p < 6; ++p) pairs[i][p] = row[i].entry[PAIR[p][0]] + row[i].entry[PAIR[p][1]];
  }
  Choice lower[VECTORS], best{};
#pragma GCC unroll 19
  for (int v = 0; v < VECTORS; ++v) lower[v] = best_choice(pairs[2], pairs[3], v);
#pragma GCC unroll 19
  for (int v = 0; v < VECTORS; ++v) {
    const Choice upper = best_choice(pairs[0], pairs[1], v), other = lower[TABLE.partner[v]];
    const Part value = upper.value + other.value;
    const Word bits = upper.bits | other.bits << 8, better = value > best.value;
    best.value = v ? (better ? value : best.value) : value;
    best.bits = v ? (better ? bits : best.bits) : bits;
  }
  return best;
}

// Where the active entries are a pattern whose sum is `best`: all ones, else 0.
GOSSAMER_INLINE Word stays(const Quad* row, const Word* active, const Part& best) {
  Part sum[4];
  Word fits = (active[0] + active[1]) + (active[2] + active[3]) == every(0x02020202);
  for (int i = 0; i < 4; ++i) {
    const Word pairs = active[i] + (active[i] >> 8);  // bytes of 0 or 1
    fits &= ((pairs + (pairs >> 16)) & every(0xff)) == every(2);
    const Part* x = row[i].entry;
    sum[i] = (where(active[i], 0, x[0]) + where(active[i], 1, x[1])) +
             (where(active[i], 2, x[2]) + where(active[i], 3, x[3]));
  }
  return fits & ((sum[0] + sum[1]) + (sum[2] + sum[3]) == best);
}

// Two of four: those that at most one other beats. Of equal scores an active one, then the first, wins.
GOSSAMER_INLINE Word best_of_four(const Quad& x, const Word& active, int n) {
  Word losses[4] = {};
  for (int i = 0; i < 4; ++i) {
    for (int j = i + 1; j < 4; ++j) {
      const Word later = (active >> (8 * j)) & ~(active >> (8 * i)) & 1;  // only j is active
      const Word ahead = (x.entry[i] > x.entry[j]) | ((x.entry[i] == x.entry[j]) & (later == 0));  // -1 or 0
      losses[j] -= ahead;
      losses[i] += 1 + ahead;
    }
  }
  Word word{};
  for (int c = 0; c < 4; ++c) word |= (losses[c] < n) & (1 << (8 * c));
  return word;
}

// Four rows of the weight: which of their entries are chosen. Returns 0 if all scores are finite, else NaN.
template <bool TILES>
float strip(const Patterns& w, std::int64_t row, const float* scores, const std::uint8_t* active, std::uint8_t* mask) {
  const std::int64_t groups = w.inputs / 4 * w.positions, length = w.inputs * w.positions;
  const int rows = TILES ? 4 : static_cast<int>(smaller(4, w.rows - row));
  Part check{};
  for (std::int64_t group = 0; group < groups; group += WIDTH) {
    const Groups at(group, groups, w.positions);
    Quad x[4];
    Word known[4] = {}, chosen[4];
    for (int i = 0; i < rows; ++i) {
      x[i] = at.load(scores + (row + i) * length);
      if (active) known[i] = at.load(active + (row + i) * length);
      for (Part& entry : x[i].entry) {
        if (w.magnitudes) entry = magnitude(entry);
        check += entry * 0.0f;
      }
    }
    if (TILES) {
      const Choice best = best_tile(x);
      const Word stay = active ? stays(x, known, best.value) : Word{};
      for (int i = 0; i < 4; ++i) {
        const Word word = (best.bits >> (4 * i) & 15) * 0x00204081 & 0x01010101;
        chosen[i] = stay ? known[i] : word;
      }
    } else {
      for (int i = 0; i < rows; ++i) chosen[i] = best_of_four(x[i], known[i], w.n);
    }
    for (int i = 0; i < rows; ++i) at.store(chosen[i], mask + (row + i) * length);
  }
  float all = 0.0f;
  for (int lane = 0; lane < WIDTH; ++lane) all += check[lane];
  return all;
}

// Groups of four rows: lanes are columns, and columns left over one by one.
float strip_of_outputs(const Patterns& w, std::int64_t row, const float* scores, const std::uint8_t* active,
                       std::uint8_t* mask) {
  const std::int64_t length = w.inputs * w.positions;
  float all = 0.0f;
  for (std::int64_t column = 0; column < length; column += WIDTH) {
    const int count = static_cast<int>(smaller(WIDTH, length - column));
    const std::int64_t from = row * length + column;
    float values[4][WIDTH] = {};
    std::int32_t known[WIDTH] = {}, chosen[WIDTH];
    for (int i = 0; i < 4; ++i) {
      std::memcpy(values[i], scores + from + i * length, static_cast<std::size_t>(count) * sizeof(float));
      for (int lane = 0; active && lane < count; ++lane) known[lane] |= active[from + i * length + lane] << (8 * i);
    }
    Quad x;
    Word now;
    std::memcpy(&x, values, sizeof(x));
    std::memcpy(&now, known, sizeof(now));
    Part check{};
    for (Part& entry : x.entry) {
      if (w.magnitudes) entry = magnitude(entry);
      check += entry * 0.0f;
    }
    for (int lane = 0; lane < WIDTH; ++lane) all += check[lane];
    const Word word = best_of_four(x, now, w.n);
    std::memcpy(chosen, &word, sizeof(word));
    for (int i = 0; i < 4; ++i) {
      for (int lane = 0; lane < count; ++lane) mask[from + i * length + lane] = chosen[lane] >> (8 * i) & 1;
    }
  }
  return all;
}

// Returns 1 if all scores are finite; else 0, and what was written means nothing.
int patterns(const float* scores, const std::uint8_t* active, std::uint8_t* mask, float* view, const Patterns* given,
             int threads) {
  const Patterns w = *given;
  const std::int64_t length = w.inputs * w.positions;
  bool fine = true;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(&& : fine)
  for (std::int64_t row = 0; row < w.rows; row += 4) {
    const auto run = w.along == 2 ? strip<true> : w.along == 1 ? strip_of_outputs : strip<false>;
    fine = run(w, row, scores, active, mask) == 0.0f && fine;
    if (!view) continue;
    const std::int64_t end = smaller(row + 4, w.rows) * length;
    for (std::int64_t i = row * length; i < end; ++i) view[i] = mask[i] ? scores[i] : 0.0f;
  }
  return fine;
}

}  // namespace
}  // namespace gossamer
