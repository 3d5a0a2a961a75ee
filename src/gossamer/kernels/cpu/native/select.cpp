// The largest magnitudes over one or several weights, with the sparse view and the mask of them, in one pass.
//
// A sample of the weights gives a bracket that most likely holds the threshold. The pass settles every weight outside the
// bracket (4 bytes read, 4 + 1 written) and notes the few within it as keys: magnitude, then active, then lower position.
// All keys differ, so the best of them are one set, whatever their order and the number of threads. A sample that misleads,
// very many equal magnitudes and values that are not finite make the function give up; the caller has another way.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#if defined(GOSSAMER_X86)
#include <immintrin.h>
#endif

namespace {

using std::int32_t;
using std::int64_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

constexpr int64_t SMALL = 1 << 12;        // up to here every weight is a candidate
constexpr int64_t CHUNK = 1 << 14;        // weights that a thread takes at a time
constexpr int64_t GROUP = 64;             // weights compared at a time
constexpr double DEVIATIONS = 3.5;        // of the sample, to either side of the threshold
constexpr int32_t INFINITE = 0x7f800000;  // bits of |w| order finite magnitudes and end below this

struct Part {
  const float* weight;
  const uint8_t* active;
  float* view;
  uint8_t* mask;
  int64_t first, size;  // number of its first weight in the whole sequence
};

struct Bracket {
  int32_t low, high;  // both ends belong to it
};

inline int32_t magnitude(float weight) {
  int32_t bits;
  std::memcpy(&bits, &weight, sizeof bits);
  return bits & 0x7fffffff;
}

// The better, the larger: magnitude, active, lower position.
inline uint64_t key(int32_t size, bool active, uint32_t position) {
  return static_cast<uint64_t>(size) << 33 | static_cast<uint64_t>(active) << 32 | (0xffffffffu - position);
}

inline int64_t position_of(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

const Part& part_of(const std::vector<Part>& parts, int64_t position) {
  auto behind = [](int64_t at, const Part& part) { return at < part.first; };
  return *(std::upper_bound(parts.begin(), parts.end(), position, behind) - 1);
}

// Multiples of the golden section spread evenly over the whole and keep out of step with rows and kernels.
std::vector<int32_t> sample(const std::vector<Part>& parts, int64_t total, int threads) {
  const int64_t size = std::min<int64_t>(std::max<int64_t>(total / 16, 1024), 16384);
  std::vector<int32_t> drawn(static_cast<size_t>(size));
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < size; ++i) {
    const uint64_t turn = static_cast<uint32_t>(static_cast<uint64_t>(i) * 2654435769u);
    const int64_t position = static_cast<int64_t>(turn * static_cast<uint64_t>(total) >> 32);
    const Part& part = part_of(parts, position);
    drawn[static_cast<size_t>(i)] = magnitude(part.weight[position - part.first]);
  }
  return drawn;
}

// Zeros are left out of the bracket: they can be most of the weights, and are wanted only if hardly any other is there.
Bracket enclose(const std::vector<Part>& parts, int64_t total, int64_t count, int threads) {
  if (total <= SMALL) return {0, INFINITE - 1};
  std::vector<int32_t> drawn = sample(parts, total, threads);
  const double size = static_cast<double>(drawn.size()), share = static_cast<double>(count) / static_cast<double>(total);
  const double margin = DEVIATIONS * std::sqrt(size * share * (1 - share)) + 2;
  auto begin = drawn.begin();
  auto ranked = [&](double rank) {  // the rank-th largest of the sample, from 1; ranks must ascend
    auto at = drawn.begin() + static_cast<int64_t>(rank) - 1;
    std::nth_element(begin, at, drawn.end(), std::greater<int32_t>());
    begin = at;
    return *at;
  };
  const double upper = std::floor(share * size - margin), lower = std::ceil(share * size + margin);
  const int32_t high = upper >= 1 ? ranked(upper) : INFINITE - 1;
  const int32_t low = lower <= size ? ranked(lower) : 0;
  return {std::max(low, 1), std::max(high, 1)};
}

struct Settled {
  int64_t above = 0, near = 0;  // weights above the bracket, and in it
  bool finite = true;
  uint32_t* where = nullptr;  // which are in it; room for a chunk and a register more
};

inline __attribute__((always_inline)) void settle_group(const float* weight, float* view, uint8_t* mask, int64_t begin,
                                                        int64_t end, Bracket bracket, Settled& out) {
  int32_t above = 0, near = 0, wild = 0;
  for (int64_t i = begin; i < end; ++i) {
    int32_t bits;
    std::memcpy(&bits, weight + i, sizeof bits);
    const int32_t size = bits & 0x7fffffff;
    const int32_t beyond = -(size > bracket.high), reached = -(size >= bracket.low);
    const int32_t kept = bits & beyond;
    std::memcpy(view + i, &kept, sizeof kept);
    mask[i] = static_cast<uint8_t>(beyond & 1);
    above -= beyond;
    near += beyond - reached;
    wild |= -(size >= INFINITE);
  }
  out.above += above;
  out.finite &= !wild;
  for (int64_t i = begin; near && i < end; ++i) {
    const int32_t size = magnitude(weight[i]);
    out.where[out.near] = static_cast<uint32_t>(i);
    out.near += (size >= bracket.low) & (size <= bracket.high);
  }
}

inline __attribute__((always_inline)) void settle_all(const float* __restrict weight, float* __restrict view,
                                                      uint8_t* __restrict mask, int64_t n, Bracket bracket, Settled& out) {
  int64_t i = 0;
  for (; i + GROUP <= n; i += GROUP) settle_group(weight, view, mask, i, i + GROUP, bracket, out);
  settle_group(weight, view, mask, i, n, bracket, out);
}

void settle(const float* weight, float* view, uint8_t* mask, int64_t n, Bracket bracket, Settled& out) {
  settle_all(weight, view, mask, n, bracket, out);
}

#if defined(GOSSAMER_X86)
__attribute__((target("avx2"))) void settle_avx2(const float* weight, float* view, uint8_t* mask, int64_t n,
                                                 Bracket bracket, Settled& out) {
  settle_all(weight, view, mask, n, bracket, out);
}

// By hand, for the sake of the compressing store: twice as fast as what compilers make of the loop above.
__attribute__((target("avx512f,avx512bw,avx512vl,popcnt"))) void settle_avx512(const float* weight, float* view,
                                                                               uint8_t* mask, int64_t n,
                                                                               Bracket bracket, Settled& out) {
  const __m512i low = _mm512_set1_epi32(bracket.low), high = _mm512_set1_epi32(bracket.high);
  const __m512i unsign = _mm512_set1_epi32(0x7fffffff), infinite = _mm512_set1_epi32(INFINITE);
  const __m512i step = _mm512_set1_epi32(16);
  __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  unsigned wild = 0;
  int64_t i = 0;
  for (; i + 16 <= n; i += 16, at = _mm512_add_epi32(at, step)) {
    const __m512i bits = _mm512_loadu_si512(weight + i), size = _mm512_and_si512(bits, unsign);
    const __mmask16 beyond = _mm512_cmpgt_epi32_mask(size, high), near = _mm512_cmpge_epi32_mask(size, low) ^ beyond;
    wild |= _mm512_cmpge_epi32_mask(size, infinite);
    _mm512_storeu_si512(view + i, _mm512_maskz_mov_epi32(beyond, bits));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(mask + i), _mm_maskz_set1_epi8(beyond, 1));
    out.above += __builtin_popcount(beyond);
    if (near) {
      _mm512_storeu_si512(out.where + out.near, _mm512_maskz_compress_epi32(near, at));
      out.near += __builtin_popcount(near);
    }
  }
  out.finite &= !wild;
  settle_group(weight, view, mask, i, n, bracket, out);
}
#endif

using Settle = void (*)(const float*, float*, uint8_t*, int64_t, Bracket, Settled&);

Settle settle_for(const char* isa) {
#if defined(GOSSAMER_X86)
  if (!std::strcmp(isa, "avx512")) return settle_avx512;
  if (!std::strcmp(isa, "avx2")) return settle_avx2;
#endif
  (void)isa;
  return settle;
}

struct Outcome {
  std::vector<uint64_t> keys;
  std::vector<int64_t> kept;  // of each part, above the bracket
  bool good = true;           // all finite, and not more keys than there is room for
};

Outcome pass(const std::vector<Part>& parts, int64_t total, Bracket bracket, Settle settle_chunk, int threads) {
  std::vector<std::pair<size_t, int64_t>> chunks;  // part, first weight
  for (size_t p = 0; p < parts.size(); ++p) {
    for (int64_t begin = 0; begin < parts[p].size; begin += CHUNK) chunks.emplace_back(p, begin);
  }
  Outcome all;
  all.kept.assign(parts.size(), 0);
  const int64_t room = total <= SMALL ? total : total / 4;
  std::atomic<int64_t> noted{0};
  std::atomic<bool> finite{true};
#pragma omp parallel num_threads(threads)
  {
    std::vector<uint64_t> keys;
    std::vector<int64_t> kept(parts.size(), 0);
    std::vector<uint32_t> where(CHUNK + 16);
#pragma omp for schedule(static)
    for (int64_t c = 0; c < static_cast<int64_t>(chunks.size()); ++c) {
      if (noted.load(std::memory_order_relaxed) > room) continue;
      const auto [p, begin] = chunks[static_cast<size_t>(c)];
      const Part& part = parts[p];
      Settled out;
      out.where = where.data();
      const int64_t n = std::min(CHUNK, part.size - begin);
      settle_chunk(part.weight + begin, part.view + begin, part.mask + begin, n, bracket, out);
      for (int64_t j = 0; j < out.near; ++j) {
        const int64_t i = begin + out.where[j];
        keys.push_back(key(magnitude(part.weight[i]), part.active[i] != 0, static_cast<uint32_t>(part.first + i)));
      }
      kept[p] += out.above;
      noted.fetch_add(out.near, std::memory_order_relaxed);
      if (!out.finite) finite.store(false, std::memory_order_relaxed);
    }
#pragma omp critical
    {
      all.keys.insert(all.keys.end(), keys.begin(), keys.end());
      for (size_t p = 0; p < parts.size(); ++p) all.kept[p] += kept[p];
    }
  }
  all.good = finite.load() && noted.load() <= room;
  return all;
}

// The n-th largest key, 1 <= n <= their number: by a histogram, then among the few of one bin.
uint64_t nth_largest(const std::vector<uint64_t>& keys, int64_t n) {
  const auto [lowest, highest] = std::minmax_element(keys.begin(), keys.end());
  const uint64_t base = *lowest;
  int shift = 0;
  while ((*highest - base) >> shift >= 1024) ++shift;
  std::vector<int64_t> bins(1024, 0);
  for (uint64_t one : keys) ++bins[(one - base) >> shift];
  uint64_t bin = 1023;
  for (; bins[bin] < n; --bin) n -= bins[bin];
  std::vector<uint64_t> same;
  for (uint64_t one : keys) {
    if ((one - base) >> shift == bin) same.push_back(one);
  }
  std::nth_element(same.begin(), same.begin() + (n - 1), same.end(), std::greater<uint64_t>());
  return same[static_cast<size_t>(n - 1)];
}

}  // namespace

// For each of `parts` weights of float32: view = the weight where it is one of the `count` largest magnitudes of them all,
// +0 elsewhere; mask = bytes 1 and 0. Equal magnitudes: active first, then an earlier weight, then a lower position. isa: of
// gossamer_use. Returns 0, or 1 if active weights of equal magnitude were told apart by their position, or -1 when it gave
// up, one of several weights would be left empty, or there are more than 2^32 entries: views and masks are then undefined.
extern "C" __attribute__((visibility("default"))) int gossamer_split(int64_t parts, const float* const* weights,
                                                                     const uint8_t* const* active, float* const* views,
                                                                     uint8_t* const* masks, const int64_t* sizes,
                                                                     int64_t count, const char* isa, int threads) {
  std::vector<Part> all;
  int64_t total = 0;
  for (int64_t p = 0; p < parts; ++p) {
    all.push_back({weights[p], active[p], views[p], masks[p], total, sizes[p]});
    total += sizes[p];
  }
  if (count < 0 || count > total || total > 0xffffffffll) return -1;
  Outcome found = pass(all, total, enclose(all, total, count, threads), settle_for(isa), threads);
  int64_t missing = count;
  for (int64_t above : found.kept) missing -= above;
  if (!found.good || missing < 0 || missing > static_cast<int64_t>(found.keys.size())) return -1;
  const uint64_t last = missing ? nth_largest(found.keys, missing) : ~uint64_t{0};
  bool by_position = false;
  for (uint64_t one : found.keys) {
    if (one < last) {
      by_position |= one >> 32 == last >> 32 && (last >> 32 & 1);
      continue;
    }
    const int64_t position = position_of(one);
    const Part& part = part_of(all, position);
    part.view[position - part.first] = part.weight[position - part.first];
    part.mask[position - part.first] = 1;
    ++found.kept[static_cast<size_t>(&part - all.data())];
  }
  for (size_t p = 0; parts > 1 && p < all.size(); ++p) {
    if (all[p].size && !found.kept[p]) return -1;
  }
  return by_position;
}
