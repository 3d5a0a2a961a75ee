// Where a product left right^T of two matrices is large, without the product: it is computed in whole numbers of 8 bits,
// four times as fast as in float32, and what that can be wrong by is known of each row.
//
// With a = a' + e and b = b' + f, where a' and b' are whole numbers times a scale, |a.b - a'.b'| <= |e| |b| + |a'| |f|.
#include <cmath>
#include <cstring>
#include <vector>

#include "index.h"

#define GOSSAMER_EXPORT extern "C" __attribute__((visibility("default")))

#if defined(GOSSAMER_X86)
#include <immintrin.h>
#define GOSSAMER_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

namespace {

using namespace gossamer;
using std::int32_t;
using std::int64_t;
using std::int8_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

#define GOSSAMER_INLINE inline __attribute__((always_inline))

constexpr int STRIP = 6;                     // rows whose sums are held in registers
constexpr int PANEL = 64;                    // columns, likewise: a word of found bits
constexpr int64_t ROWS = 8 * STRIP;          // rows whose found bits are kept at a time
constexpr int64_t DEEPEST = 1 << 15;         // samples: sums stay far below 2^31
constexpr int64_t MOST_CELLS = 1 << 24;      // rows times column blocks
constexpr float LARGEST = 1e18f;             // norm, so that no product overflows
constexpr float SMALLEST = 1e-15f;           // of the largest number of a row that is more than nothing
constexpr float ROUNDING = 1.0f / (1 << 22);  // of a sum in float32, for each of its terms

inline int64_t padded(int64_t size, int64_t to) { return pieces(size, to) * to; }

// A matrix by rows, rounded to whole numbers; rows and samples are filled up with zeros.
struct Whole {
  int64_t depth;
  std::vector<int8_t> values;  // [rows][depth]
  std::vector<int32_t> sum;               // of a row
  std::vector<float> scale, norm, error;  // the norms of a row, and of what rounding took from it
  float largest;                          // norm; NaN if a number is not finite
};

struct Row {
  int8_t* values;
  int32_t* sum;
  float *scale, *norm, *error;
};

GOSSAMER_VNNI inline __m512 sixteen(const float* row, int64_t i, int64_t samples, __mmask16& there) {
  there = samples - i < 16 ? static_cast<__mmask16>((1 << (samples - i)) - 1) : 0xffff;
  return _mm512_maskz_loadu_ps(there, row + i);
}

GOSSAMER_VNNI void round_row(const float* row, int64_t samples, const Row& out) {
  __m512 sizes = _mm512_setzero_ps(), squares = sizes, lost = sizes;
  __m512i wholes = _mm512_setzero_si512();
  __mmask16 there;
  for (int64_t i = 0; i < samples; i += 16) {
    const __m512 x = sixteen(row, i, samples, there);
    sizes = _mm512_max_ps(sizes, _mm512_abs_ps(x)), squares = _mm512_fmadd_ps(x, x, squares);
  }
  const float most = _mm512_reduce_max_ps(sizes);
  *out.norm = *out.error = std::sqrt(_mm512_reduce_add_ps(squares));
  if (most < SMALLEST) *out.norm = *out.error = SMALLEST * std::sqrt(static_cast<float>(samples));  // nothing is left
  if (most < SMALLEST || !std::isfinite(*out.norm)) return;
  *out.scale = most / 127;
  const __m512 factor = _mm512_set1_ps(127 / most), unit = _mm512_set1_ps(*out.scale);
  for (int64_t i = 0; i < samples; i += 16) {
    const __m512 x = sixteen(row, i, samples, there);
    const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(x, factor));
    const __m512 rest = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(whole), unit, x);
    _mm512_mask_cvtepi32_storeu_epi8(out.values + i, there, whole);
    wholes = _mm512_add_epi32(wholes, whole), lost = _mm512_fmadd_ps(rest, rest, lost);
  }
  *out.sum = _mm512_reduce_add_epi32(wholes), *out.error = std::sqrt(_mm512_reduce_add_ps(lost));
}

Whole rounded(const float* x, int64_t rows, int64_t samples, int64_t to, int threads) {
  const int64_t depth = padded(samples, 4);
  const size_t all = static_cast<size_t>(padded(rows, to));
  const std::vector<float> zeros(all);
  Whole out{depth, std::vector<int8_t>(all * static_cast<size_t>(depth)), std::vector<int32_t>(all), zeros, zeros, zeros, 0};
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < rows; ++row) {
    const size_t at = static_cast<size_t>(row);
    const Row to{out.values.data() + row * depth, &out.sum[at], &out.scale[at], &out.norm[at], &out.error[at]};
    round_row(x + row * samples, samples, to);
  }
  for (float norm : out.norm) out.largest = norm > out.largest ? norm : out.largest + 0 * norm;
  return out;
}

// [panels][depth / 4][PANEL][4], by 128 more than they are.
std::vector<uint8_t> panels_of(const Whole& right, int threads) {
  const int64_t panels = static_cast<int64_t>(right.scale.size()) / PANEL, depth = right.depth;
  std::vector<uint8_t> out(right.values.size());
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t panel = 0; panel < panels; ++panel) {
    const int8_t* from = right.values.data() + panel * PANEL * depth;
    uint8_t* to = out.data() + panel * PANEL * depth;
    for (int64_t k = 0; k < depth; k += 4) {
      for (int64_t c = 0; c < PANEL; ++c) {
        uint32_t four;
        std::memcpy(&four, from + c * depth + k, sizeof four);
        four ^= 0x80808080;
        std::memcpy(to + (k / 4 * PANEL + c) * 4, &four, sizeof four);
      }
    }
  }
  return out;
}

// A row of a strip: named sums stay in registers, those of an array do not.
struct Sums {
  __m512i a, b, c, d;
};

GOSSAMER_VNNI GOSSAMER_INLINE void add_four(Sums& to, const Sums& columns, const int8_t* row) {
  int32_t four;
  std::memcpy(&four, row, sizeof four);
  const __m512i own = _mm512_set1_epi32(four);
  to.a = _mm512_dpbusd_epi32(to.a, columns.a, own), to.b = _mm512_dpbusd_epi32(to.b, columns.b, own);
  to.c = _mm512_dpbusd_epi32(to.c, columns.c, own), to.d = _mm512_dpbusd_epi32(to.d, columns.d, own);
}

GOSSAMER_VNNI GOSSAMER_INLINE uint64_t exceeding(__m512i sums, const Whole& left, size_t row, const Whole& right,
                                                 size_t column, float limit) {
  const __m512 size = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_abs_epi32(sums)), _mm512_loadu_ps(&right.scale[column]));
  const __m512 lost = _mm512_mul_ps(_mm512_set1_ps(left.norm[row]), _mm512_loadu_ps(&right.error[column]));
  const __m512 slack = _mm512_fmadd_ps(_mm512_set1_ps(left.error[row]), _mm512_loadu_ps(&right.norm[column]), lost);
  const __m512 most = _mm512_fmadd_ps(size, _mm512_set1_ps(left.scale[row]), slack);
  return _mm512_cmp_ps_mask(most, _mm512_set1_ps(limit), _CMP_GT_OQ);
}

// One strip of rows by one panel: bits of the columns whose products may exceed the limit, a word for each row.
GOSSAMER_VNNI void strip(const Whole& left, int64_t row, const Whole& right, const uint8_t* panel, int64_t column,
                         float limit, uint64_t* bits, int64_t words) {
  const int64_t depth = left.depth;
  const int8_t* from = left.values.data() + row * depth;
  auto start = [&](int r) __attribute__((always_inline)) GOSSAMER_VNNI {
    const __m512i sum = _mm512_set1_epi32(-128 * left.sum[static_cast<size_t>(row + r)]);
    return Sums{sum, sum, sum, sum};
  };
  Sums s0 = start(0), s1 = start(1), s2 = start(2), s3 = start(3), s4 = start(4), s5 = start(5);
  for (int64_t k = 0; k < depth; k += 4, from += 4, panel += 4 * PANEL) {
    const Sums columns{_mm512_loadu_si512(panel), _mm512_loadu_si512(panel + PANEL),
                       _mm512_loadu_si512(panel + 2 * PANEL), _mm512_loadu_si512(panel + 3 * PANEL)};
    add_four(s0, columns, from), add_four(s1, columns, from + depth), add_four(s2, columns, from + 2 * depth);
    add_four(s3, columns, from + 3 * depth), add_four(s4, columns, from + 4 * depth);
    add_four(s5, columns, from + 5 * depth);
  }
  const Sums all[STRIP] = {s0, s1, s2, s3, s4, s5};
  for (int r = 0; r < STRIP; ++r) {
    const size_t own = static_cast<size_t>(row + r), at = static_cast<size_t>(column);
    bits[r * words] = exceeding(all[r].a, left, own, right, at, limit) |
                      exceeding(all[r].b, left, own, right, at + 16, limit) << 16 |
                      exceeding(all[r].c, left, own, right, at + 32, limit) << 32 |
                      exceeding(all[r].d, left, own, right, at + 48, limit) << 48;
  }
}

// Where the values of each row and column block lie.
struct Piece {
  int32_t value;
  uint16_t count;
};

std::vector<Piece> pieces_of(const Index& index, int threads) {
  const Header& h = *index.header;
  std::vector<Piece> out(static_cast<size_t>(h.rows * index.column_blocks), Piece{0, 0});
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t rb = 0; rb < index.row_blocks; ++rb) {
    rows_of(index, rb, [&](int row, int64_t value, int count, int64_t cb) {
      const int64_t at = (rb * h.row_block + row) * index.column_blocks + cb;
      out[static_cast<size_t>(at)] = {static_cast<int32_t>(value), static_cast<uint16_t>(count)};
    });
  }
  return out;
}

// Takes the active columns of a row from the bits; writes the positions of the others and returns where these end.
inline int64_t* take_row(const Index& index, const std::vector<Piece>& active, int64_t row, uint64_t* bits,
                         int64_t words, int64_t* found) {
  const Header& h = *index.header;
  for (int64_t cb = 0; cb < index.column_blocks; ++cb) {
    const Piece& piece = active[static_cast<size_t>(row * index.column_blocks + cb)];
    const uint16_t* columns = index.columns + piece.value;
    for (int i = 0; i < piece.count; ++i) {
      const int64_t column = cb * h.column_block + columns[i];
      bits[column / 64] &= ~(uint64_t{1} << column % 64);
    }
  }
  for (int64_t word = 0; word < words; ++word) {
    for (uint64_t left = bits[word]; left; left &= left - 1) {
      *found++ = row * h.columns + word * 64 + __builtin_ctzll(left);
    }
  }
  return found;
}

}  // namespace
#endif

// Ascending positions of all entries of left [rows][samples] times right [columns][samples] transposed that exceed `limit`
// in magnitude, and of some that come near it, without those in the index; `found` has room for `most` and a row for
// each thread. isa: of gossamer_use. Returns how many; -1 if they are more or something is not finite or too large; -2 if this machine, or the
// isa, does not do it.
GOSSAMER_EXPORT std::int64_t gossamer_beyond(const float* left, const float* right, std::int64_t samples, float limit,
                                             const std::uint8_t* bytes, std::int64_t* found, std::int64_t most,
                                             const char* isa, int threads) {
#if defined(GOSSAMER_X86)
  const Index index = read_index(bytes);
  const int64_t rows = index.header->rows, columns = index.header->columns;
  if (std::strcmp(isa, "avx512") || !__builtin_cpu_supports("avx512vnni")) return -2;
  if (samples > DEEPEST || rows * index.column_blocks > MOST_CELLS) return -2;
  Whole a = rounded(left, rows, samples, STRIP, threads);
  const Whole b = rounded(right, columns, samples, PANEL, threads);
  if (!(a.largest < LARGEST && b.largest < LARGEST)) return -1;
  for (size_t row = 0; row < a.norm.size(); ++row) {  // what the two norms of b are multiplied by
    const float norm = a.norm[row], error = a.error[row];
    a.error[row] = 1.001f * (error + ROUNDING * static_cast<float>(samples) * norm), a.norm[row] = 1.001f * (norm + error);
  }
  const std::vector<uint8_t> panels = panels_of(b, threads);
  const std::vector<Piece> active = pieces_of(index, threads);
  const int64_t words = pieces(columns, PANEL), strips = pieces(rows, STRIP);
  std::vector<int64_t> counts(static_cast<size_t>(threads), 0);
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int part = 0; part < threads; ++part) {
    int64_t *const mine = found + part * (most + columns), *next = mine;
    std::vector<uint64_t> bits(static_cast<size_t>(ROWS * words));
    const int64_t end = smaller(rows, strips * (part + 1) / threads * STRIP);
    for (int64_t first = strips * part / threads * STRIP; first < end; first += ROWS) {
      const int64_t last = smaller(first + ROWS, end);
      for (int64_t word = 0; word < words; ++word) {
        const uint8_t* panel = panels.data() + word * PANEL * b.depth;
        for (int64_t row = first; row < last; row += STRIP) {
          strip(a, row, b, panel, word * PANEL, limit * (1 - 1e-6f), bits.data() + (row - first) * words + word, words);
        }
      }
      for (int64_t row = first; row < last && next - mine <= most; ++row) {
        next = take_row(index, active, row, bits.data() + (row - first) * words, words, next);
      }
    }
    counts[static_cast<size_t>(part)] = next - mine;
  }
  int64_t all = 0;
  for (int part = 0; part < threads; ++part) {
    const int64_t count = counts[static_cast<size_t>(part)];
    if (all + count > most) return -1;
    std::memmove(found + all, found + part * (most + columns), static_cast<size_t>(count) * sizeof(int64_t));
    all += count;
  }
  return all;
#else
  (void)left, (void)right, (void)samples, (void)limit, (void)bytes, (void)found, (void)most, (void)isa, (void)threads;
  return -2;
#endif
}
