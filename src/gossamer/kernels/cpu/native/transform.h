// Orthonormal cosine (DCT-II) and Walsh-Hadamard transforms along the middle axis of [outer][features][inner], cropped:
// the leading rows and columns of a block-diagonal matrix of such transforms, or the transpose of that.
#pragma once
#include <cmath>
#include <memory>

#include "fft.h"
#include "kernels.h"
#include "vectors.h"

namespace gossamer {
namespace {

// Where Makhoul (1980) puts entry i of a vector of that length: first the even ones, then the odd ones from the end.
struct Interleaved {
  std::int64_t length;
  int spread, flip;  // rows for each entry; 1 to take the other part of a complex element
  GOSSAMER_INLINE std::int64_t operator()(std::int64_t i) const {
    return ((i % 2 ? length - 1 - i / 2 : i / 2) * spread) ^ flip;
  }
};

struct InOrder {
  GOSSAMER_INLINE std::int64_t operator()(std::int64_t i) const { return i; }
};

template <class Place>
void clear(float* rows, const Place& place, std::int64_t from, std::int64_t to) {
  for (std::int64_t i = from; i < to; ++i) Lanes::all(0.0f).store(rows + place(i) * LANES);
}

// A cosine transform by a Fourier transform: of half the length, on pairs of entries, if it is even; else of the same
// length, on real numbers. All tables come from transforms/tables.py: for k = 1, 2, ... what joins frequency k with its
// mirror images, then those of the Fourier transform.
class Cosine {
 public:
  Cosine(const Transform& t, const std::int64_t* factors, const float* tables) : length_(t.length) {
    even_ = length_ % 2 == 0;
    complex_ = even_ ? length_ / 2 : length_;
    turns_ = tables;
    tables += even_ ? 6 * (complex_ / 2) : 2 * (complex_ / 2);
    convolution_ = t.convolution;
    if (convolution_) {
      chirp_ = tables;
      spectrum_ = chirp_ + 2 * complex_;
      tables = spectrum_ + 2 * convolution_;
    }
    fourier_ = {convolution_ ? convolution_ : complex_, factors, tables};
    scale_ = static_cast<float>(std::sqrt(1.0 / static_cast<double>(length_)));
  }

  std::int64_t workspace() const { return 2 * half_workspace(); }

  void load(const float* x, const Vectors& v, std::int64_t count, const float* signs, bool transposed,
            float* work) const {
    if (transposed) {
      gather(x, v, count, 1.0f, signs, work, InOrder{});
      clear(work, InOrder{}, count, length_);
      return;
    }
    gather(x, v, count, 1.0f, signs, work, place(0));
    clear(work, place(0), count, length_);
    if (!even_) clear(work, place(1), 0, length_);
  }

  void run(bool transposed, float* work) const {
    float* other = work + half_workspace();
    if (transposed) {
      even_ ? split(work, other) : split_odd(work, other);
      apply_fourier(other, work);
    } else {
      apply_fourier(work, other);
      even_ ? join(other, work) : join_odd(other, work);
    }
  }

  void store(const float* work, std::int64_t count, const float* signs, bool transposed, float* x,
             const Vectors& v) const {
    transposed ? scatter(work, place(1), count, signs, x, v) : scatter(work, InOrder{}, count, signs, x, v);
  }

 private:
  // After an inverse transform the two parts are swapped.
  Interleaved place(int flip) const { return {length_, even_ ? 1 : 2, flip}; }

  // The last elements keep the two halves from falling on the same sets of a cache.
  std::int64_t half_workspace() const { return (fourier_.length + 5) * ELEMENT; }

  void apply_fourier(float* in, float* out) const {
    convolution_ ? bluestein(fourier_, complex_, chirp_, spectrum_, in, out) : fourier(fourier_, in, 1, out);
  }

  // Even length 2 h, from the transform z of pairs: the real transform of all entries is V[k] = S + G and
  // V[h - k]* = S - G, where S = z[k] + z[h - k]*, G = -i w (z[k] - z[h - k]*); turned by an angle, its real and
  // imaginary parts are the frequencies k and 2 h - k, h - k and h + k.
  void join(const float* z, float* out) const {
    const std::int64_t h = complex_;
    for (int part = 0; part < PARTS; ++part) {
      const Complex a = Complex::load(z + part * WIDTH);
      put(out, 0, part, (a.re + a.im) * scale_);
      put(out, h, part, (a.re - a.im) * scale_);
    }
    const float* turn = turns_;
    for (std::int64_t k = 1; k <= h / 2; ++k, turn += 6) {
      for (int part = 0; part < PARTS; ++part) {
        const Complex a = Complex::load(z + k * ELEMENT + part * WIDTH);
        const Complex b = Complex::load(z + (h - k) * ELEMENT + part * WIDTH).conjugate();
        const Complex s = a + b, g = (a - b).minus_i().times(turn[0], turn[1]);
        const Complex low = (s + g).times(turn[2], turn[3]), high = (s - g).conjugate().times(turn[4], turn[5]);
        put(out, k, part, low.re);
        put(out, length_ - k, part, -low.im);
        put(out, h - k, part, high.re);
        put(out, h + k, part, -high.im);
      }
    }
  }

  // The transpose of `join`, which is its inverse up to a factor; leaves the two parts swapped.
  void split(const float* in, float* z) const {
    const std::int64_t h = complex_;
    for (int part = 0; part < PARTS; ++part) {
      const Part a = get(in, 0, part), b = get(in, h, part);
      Complex{(a - b) * scale_, (a + b) * scale_}.store(z + part * WIDTH);
    }
    const float* turn = turns_;
    for (std::int64_t k = 1; k <= h / 2; ++k, turn += 6) {
      for (int part = 0; part < PARTS; ++part) {
        const Complex low = Complex{get(in, k, part), -get(in, length_ - k, part)}.times(turn[2], -turn[3]);
        const Complex high = Complex{get(in, h - k, part), -get(in, h + k, part)}.times(turn[4], -turn[5]).conjugate();
        const Complex s = low + high, g = (low - high).times(turn[0], -turn[1]).minus_i();
        (s - g).swapped().store(z + k * ELEMENT + part * WIDTH);
        (s + g).conjugate().swapped().store(z + (h - k) * ELEMENT + part * WIDTH);
      }
    }
  }

  void join_odd(const float* z, float* out) const {
    for (int part = 0; part < PARTS; ++part) put(out, 0, part, get(z, 0, part) * scale_);
    for (std::int64_t k = 1; k <= length_ / 2; ++k) {
      for (int part = 0; part < PARTS; ++part) {
        const float* turn = turns_ + 2 * k - 2;
        const Complex turned = Complex::load(z + k * ELEMENT + part * WIDTH).times(turn[0], turn[1]);
        put(out, k, part, turned.re);
        put(out, length_ - k, part, -turned.im);
      }
    }
  }

  // The other half of the frequencies is zero: what that adds is imaginary and not looked at.
  void split_odd(const float* in, float* z) const {
    for (int part = 0; part < PARTS; ++part) Complex{Part{}, get(in, 0, part) * scale_}.store(z + part * WIDTH);
    for (std::int64_t k = 1; k <= length_ / 2; ++k) {
      for (int part = 0; part < PARTS; ++part) {
        const float* turn = turns_ + 2 * k - 2;
        const Complex pair{get(in, k, part), -get(in, length_ - k, part)};
        pair.times(turn[0], -turn[1]).swapped().store(z + k * ELEMENT + part * WIDTH);
        Complex{Part{}, Part{}}.store(z + (length_ - k) * ELEMENT + part * WIDTH);
      }
    }
  }

  static GOSSAMER_INLINE Part get(const float* rows, std::int64_t row, int part) {
    return *reinterpret_cast<const Part*>(rows + row * LANES + part * WIDTH);
  }
  static GOSSAMER_INLINE void put(float* rows, std::int64_t row, int part, Part value) {
    *reinterpret_cast<Part*>(rows + row * LANES + part * WIDTH) = value;
  }

  std::int64_t length_, complex_, convolution_;
  bool even_;
  float scale_;
  const float *turns_, *chirp_ = nullptr, *spectrum_ = nullptr;
  Fourier fourier_;
};

// Rows of the Walsh-Hadamard transform in its natural (Sylvester) order; its matrix is symmetric.
class Hadamard {
 public:
  explicit Hadamard(const Transform& t) : length_(t.length) {
    scale_ = static_cast<float>(std::sqrt(1.0 / static_cast<double>(length_)));
  }

  std::int64_t workspace() const { return length_ * LANES; }

  void load(const float* x, const Vectors& v, std::int64_t count, const float* signs, bool, float* work) const {
    gather(x, v, count, scale_, signs, work, InOrder{});
    clear(work, InOrder{}, count, length_);
  }

  void run(bool, float* work) const { apply(work, length_); }

  void store(const float* work, std::int64_t count, const float* signs, bool, float* x, const Vectors& v) const {
    scatter(work, InOrder{}, count, signs, x, v);
  }

 private:
  static void apply(float* rows, std::int64_t length) {
    if (length == 1) return;
    const int radix = length >= 8 ? 8 : static_cast<int>(length);
    const std::int64_t m = length / radix;
    for (int j = 0; j < radix; ++j) apply(rows + j * m * LANES, m);
    if (radix == 8) combine<8>(rows, m);
    else if (radix == 4) combine<4>(rows, m);
    else combine<2>(rows, m);
  }

  template <int R>
  static void combine(float* rows, std::int64_t m) {
    for (std::int64_t i = 0; i < m * LANES; i += WIDTH) {
      Part x[R];
#pragma GCC unroll 8
      for (int j = 0; j < R; ++j) x[j] = *reinterpret_cast<const Part*>(rows + j * m * LANES + i);
#pragma GCC unroll 3
      for (int half = 1; half < R; half *= 2) {
#pragma GCC unroll 8
        for (int j = 0; j < R; ++j) {
          if (j & half) continue;
          const Part a = x[j], b = x[j + half];
          x[j] = a + b;
          x[j + half] = a - b;
        }
      }
#pragma GCC unroll 8
      for (int j = 0; j < R; ++j) *reinterpret_cast<Part*>(rows + j * m * LANES + i) = x[j];
    }
  }

  std::int64_t length_;
  float scale_;
};

struct FirstRow {
  GOSSAMER_INLINE std::int64_t operator()(std::int64_t) const { return 0; }
};

// Sixteen vectors, block by block. Signs belong to the columns: they go in forwards and come out transposed.
template <class Kind>
void transform_some(const Kind& kind, const Transform& t, const float* x, const float* signs, float* y,
                    std::int64_t first, float* work) {
  const bool back = t.transposed;
  const std::int64_t from = back ? t.rows : t.columns, to = back ? t.columns : t.rows;
  const Vectors in(first, t.outer * t.inner, from, t.inner), out(first, t.outer * t.inner, to, t.inner);
  for (std::int64_t begin = 0; begin < to; begin += t.length) {
    const std::int64_t entries = smaller(t.length, from - begin), results = smaller(t.length, to - begin);
    float* result = y + begin * t.inner;
    if (entries > 0) {
      const float* some = signs ? signs + begin : nullptr;
      kind.load(x + begin * t.inner, in, entries, back ? nullptr : some, back, work);
      kind.run(back, work);
      kind.store(work, results, back ? some : nullptr, back, result, out);
    } else {
      clear(work, FirstRow{}, 0, 1);
      scatter(work, FirstRow{}, results, nullptr, result, out);
    }
  }
}

// Sixteen vectors are one thread's: the result does not depend on how many there are.
template <class Kind>
void transform(const Kind& kind, const Transform& t, const float* x, const float* signs, float* y, int threads) {
  const std::int64_t tiles = pieces(t.outer * t.inner, LANES), workers = smaller(tiles, threads);
  const std::int64_t room = kind.workspace();
  std::unique_ptr<float[]> rooms(new float[static_cast<std::size_t>(workers * room + LANES)]);
  const std::size_t past = reinterpret_cast<std::uintptr_t>(rooms.get()) / sizeof(float) % LANES;
  float* aligned = rooms.get() + (LANES - past) % LANES;
#pragma omp parallel for schedule(static, 1) num_threads(static_cast<int>(workers))
  for (std::int64_t worker = 0; worker < workers; ++worker) {
    for (std::int64_t tile = tiles * worker / workers; tile < tiles * (worker + 1) / workers; ++tile) {
      transform_some(kind, t, x, signs, y, tile * LANES, aligned + worker * room);
    }
  }
}

void cosine(const float* x, const float* signs, float* y, const Transform* t, const std::int64_t* factors,
            const float* tables, int threads) {
  transform(Cosine(*t, factors, tables), *t, x, signs, y, threads);
}

void hadamard(const float* x, const float* signs, float* y, const Transform* t, int threads) {
  transform(Hadamard(*t), *t, x, signs, y, threads);
}

}  // namespace
}  // namespace gossamer
