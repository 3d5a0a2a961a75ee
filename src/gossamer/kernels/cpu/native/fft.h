// Fourier transforms of any length, of sixteen vectors at once: elements of 16 real parts and then 16 imaginary ones.
#pragma once
#include "lanes.h"

namespace gossamer {
namespace {

constexpr int ELEMENT = 2 * LANES;
constexpr int LARGEST_PRIME = 61;  // longer ones: a convolution; `LARGEST_PRIME` of transforms/tables.py

struct Complex {
  Part re, im;

  static GOSSAMER_INLINE Complex load(const float* from) {
    return {*reinterpret_cast<const Part*>(from), *reinterpret_cast<const Part*>(from + LANES)};
  }
  GOSSAMER_INLINE void store(float* to) const {
    *reinterpret_cast<Part*>(to) = re;
    *reinterpret_cast<Part*>(to + LANES) = im;
  }
  GOSSAMER_INLINE Complex swapped() const { return {im, re}; }
  GOSSAMER_INLINE Complex operator+(const Complex& b) const { return {re + b.re, im + b.im}; }
  GOSSAMER_INLINE Complex operator-(const Complex& b) const { return {re - b.re, im - b.im}; }
  GOSSAMER_INLINE Complex times(float wr, float wi) const { return {re * wr - im * wi, re * wi + im * wr}; }
  GOSSAMER_INLINE Complex conjugate() const { return {re, -im}; }
  GOSSAMER_INLINE Complex minus_i() const { return {im, -re}; }  // times -i
};

// Transforms of R elements in registers. table: cosines of 2 pi j / R for every j < R, then the sines.
template <int R>
struct Butterfly {
  static_assert(R % 2 == 1, "the even ones are below");
  static GOSSAMER_INLINE void apply(Complex* x, const float* table) {
    constexpr int HALF = R / 2;
    Complex sum[HALF], difference[HALF], total = x[0];
    const Complex first = x[0];
    for (int j = 0; j < HALF; ++j) {
      sum[j] = x[j + 1] + x[R - 1 - j];
      difference[j] = x[j + 1] - x[R - 1 - j];
      total = total + sum[j];
    }
    x[0] = total;
#pragma GCC unroll 4
    for (int k = 1; k <= HALF; ++k) {
      Complex even = first, odd{Part{}, Part{}};
#pragma GCC unroll 4
      for (int j = 1; j <= HALF; ++j) {
        const float c = table[j * k % R], s = table[R + j * k % R];
        even.re += sum[j - 1].re * c;
        even.im += sum[j - 1].im * c;
        odd.re += difference[j - 1].re * s;
        odd.im += difference[j - 1].im * s;
      }
      x[k] = even + odd.minus_i();
      x[R - k] = even - odd.minus_i();
    }
  }
};

template <>
struct Butterfly<2> {
  static GOSSAMER_INLINE void apply(Complex* x, const float*) {
    const Complex a = x[0];
    x[0] = a + x[1];
    x[1] = a - x[1];
  }
};

template <>
struct Butterfly<4> {
  static GOSSAMER_INLINE void apply(Complex* x, const float*) {
    const Complex a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = (x[1] - x[3]).minus_i();
    x[0] = a + c;
    x[1] = b + d;
    x[2] = a - c;
    x[3] = b - d;
  }
};

template <>
struct Butterfly<8> {
  static GOSSAMER_INLINE void apply(Complex* x, const float*) {
    constexpr float HALF = 0.70710678118654752440f;
    Complex even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
    Butterfly<4>::apply(even, nullptr);
    Butterfly<4>::apply(odd, nullptr);
    odd[1] = {(odd[1].re + odd[1].im) * HALF, (odd[1].im - odd[1].re) * HALF};
    odd[2] = odd[2].minus_i();
    odd[3] = {(odd[3].im - odd[3].re) * HALF, (odd[3].re + odd[3].im) * -HALF};
#pragma GCC unroll 8
    for (int k = 0; k < 4; ++k) {
      x[k] = even[k] + odd[k];
      x[k + 4] = even[k] - odd[k];
    }
  }
};

// R transforms of length m each, one after the other at `out`, become one of length R m, in place; and its start where
// m is 1, from elements that lie `stride` apart. table: what the butterfly needs, then for each k < m the R - 1 factors.
template <int R>
void combine(float* out, std::int64_t m, const float* table) {
  const float* factor = table + 2 * R;
  for (std::int64_t k = 0; k < m; ++k, factor += 2 * (R - 1)) {
    for (int part = 0; part < PARTS; ++part) {
      float* at = out + k * ELEMENT + part * WIDTH;
      Complex x[R];
      x[0] = Complex::load(at);
#pragma GCC unroll 8
      for (int j = 1; j < R; ++j) {
        x[j] = Complex::load(at + j * m * ELEMENT).times(factor[2 * j - 2], factor[2 * j - 1]);
      }
      Butterfly<R>::apply(x, table);
#pragma GCC unroll 8
      for (int j = 0; j < R; ++j) x[j].store(at + j * m * ELEMENT);
    }
  }
}

template <int R>
GOSSAMER_INLINE void start(const float* in, std::int64_t stride, float* out, const float* table) {
  for (int part = 0; part < PARTS; ++part) {
    Complex x[R];
#pragma GCC unroll 8
    for (int j = 0; j < R; ++j) x[j] = Complex::load(in + j * stride * ELEMENT + part * WIDTH);
    Butterfly<R>::apply(x, table);
#pragma GCC unroll 8
    for (int j = 0; j < R; ++j) x[j].store(out + j * ELEMENT + part * WIDTH);
  }
}

// The same for any odd prime up to LARGEST_PRIME, through an array.
inline void long_butterfly(Complex* x, int prime, const float* table) {
  Complex sum[LARGEST_PRIME / 2], difference[LARGEST_PRIME / 2];
  const Complex first = x[0];
  const int half = prime / 2;
  for (int j = 0; j < half; ++j) {
    sum[j] = x[j + 1] + x[prime - 1 - j];
    difference[j] = x[j + 1] - x[prime - 1 - j];
    x[0] = x[0] + sum[j];
  }
  for (int k = 1; k <= half; ++k) {
    Complex even = first, odd{Part{}, Part{}};
    for (int j = 0, at = k; j < half; ++j, at = at + k < prime ? at + k : at + k - prime) {
      const float c = table[at], s = table[prime + at];
      even.re += sum[j].re * c;
      even.im += sum[j].im * c;
      odd.re += difference[j].re * s;
      odd.im += difference[j].im * s;
    }
    x[k] = even + odd.minus_i();
    x[prime - k] = even - odd.minus_i();
  }
}

// in: null to combine what is at `out`, as above.
void long_prime(int prime, const float* in, std::int64_t stride, float* out, std::int64_t m, const float* table) {
  const float* factor = table + 2 * prime;
  for (std::int64_t k = 0; k < m; ++k, factor += 2 * (prime - 1)) {
    for (int part = 0; part < PARTS; ++part) {
      float* at = out + k * ELEMENT + part * WIDTH;
      Complex x[LARGEST_PRIME];
      x[0] = Complex::load(in ? in + part * WIDTH : at);
      for (int j = 1; j < prime; ++j) {
        x[j] = in ? Complex::load(in + j * stride * ELEMENT + part * WIDTH)
                  : Complex::load(at + j * m * ELEMENT).times(factor[2 * j - 2], factor[2 * j - 1]);
      }
      long_butterfly(x, prime, table);
      for (int j = 0; j < prime; ++j) x[j].store(at + j * m * ELEMENT);
    }
  }
}

// The factors of a length, the outermost first, and the table of each, as transforms/tables.py lays them out.
struct Fourier {
  std::int64_t length;
  const std::int64_t* factors;
  const float* tables;
};

// out [length] = the transform of `length` elements at `in`, `stride` apart. Depth first: what has just been made is near.
void fourier(const Fourier& f, const float* in, std::int64_t stride, float* out) {
  if (f.length == 1) {
    for (int part = 0; part < PARTS; ++part) Complex::load(in + part * WIDTH).store(out + part * WIDTH);
    return;
  }
  const int r = static_cast<int>(f.factors[0]);
  const std::int64_t m = f.length / r;
  if (m == 1) {
    switch (r) {
      case 2: return start<2>(in, stride, out, f.tables);
      case 3: return start<3>(in, stride, out, f.tables);
      case 4: return start<4>(in, stride, out, f.tables);
      case 5: return start<5>(in, stride, out, f.tables);
      case 7: return start<7>(in, stride, out, f.tables);
      case 8: return start<8>(in, stride, out, f.tables);
      default: return long_prime(r, in, stride, out, 1, f.tables);
    }
  }
  const Fourier inner{m, f.factors + 1, f.tables + 2 * r + 2 * (r - 1) * m};
  for (int j = 0; j < r; ++j) fourier(inner, in + j * stride * ELEMENT, stride * r, out + j * m * ELEMENT);
  switch (r) {
    case 2: return combine<2>(out, m, f.tables);
    case 3: return combine<3>(out, m, f.tables);
    case 4: return combine<4>(out, m, f.tables);
    case 5: return combine<5>(out, m, f.tables);
    case 7: return combine<7>(out, m, f.tables);
    case 8: return combine<8>(out, m, f.tables);
    default: return long_prime(r, nullptr, 0, out, m, f.tables);
  }
}

// Multiplies elements by complex numbers, swapping the two parts before or after it if asked: a transform between two
// swaps is the inverse one.
template <bool BEFORE, bool AFTER>
void multiply(const float* in, float* out, const float* factors, std::int64_t count) {
  for (std::int64_t k = 0; k < count; ++k) {
    for (int part = 0; part < PARTS; ++part) {
      const std::int64_t at = k * ELEMENT + part * WIDTH;
      const Complex x = Complex::load(in + at), y = BEFORE ? x.swapped() : x;
      const Complex z = y.times(factors[2 * k], factors[2 * k + 1]);
      (AFTER ? z.swapped() : z).store(out + at);
    }
  }
}

// Bluestein's algorithm (1970): a transform of any length as a cyclic convolution, of the `inner` length. chirp:
// exp(-pi i k k / length) for every k; spectrum: the transform of its conjugate, over the inner length. `in` has room
// for the inner length, as `out` has, and is overwritten.
void bluestein(const Fourier& inner, std::int64_t length, const float* chirp, const float* spectrum, float* in,
               float* out) {
  multiply<false, false>(in, in, chirp, length);
  for (std::int64_t i = length * ELEMENT; i < inner.length * ELEMENT; ++i) in[i] = 0.0f;
  fourier(inner, in, 1, out);
  multiply<false, true>(out, out, spectrum, inner.length);
  fourier(inner, out, 1, in);
  multiply<true, false>(in, out, chirp, length);
}

}  // namespace
}  // namespace gossamer
