// What this machine can do at best with the inner loops of sparse kernels: the roofs of benchmarks/roofline.py.
//
// A vector holds 16 floats. Threads work on their own part of the buffers, over and over; the size of a part decides
// which cache it stays in. Accumulators are returned so that nothing is optimised away.
#include <cstdint>

typedef float Lanes __attribute__((vector_size(64), aligned(64)));

constexpr int UNROLL = 8;

static float total(const Lanes* sums) {
  float sum = 0;
  for (int j = 0; j < UNROLL; ++j)
    for (int i = 0; i < 16; ++i) sum += sums[j][i];
  return sum;
}

extern "C" {

// Forward: per stored value and vector one load and one multiply-add.
float probe_forward(const Lanes* x, std::int64_t vectors, std::int64_t passes, int threads) {
  float result = 0;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(+ : result)
  for (int thread = 0; thread < threads; ++thread) {
    const Lanes* own = x + thread * vectors;
    Lanes sums[UNROLL] = {};
    for (std::int64_t pass = 0; pass < passes; ++pass) {
      const Lanes value = Lanes{} + 1.0f / float(pass + 1);
      for (std::int64_t i = 0; i < vectors; i += UNROLL)
        for (int j = 0; j < UNROLL; ++j) sums[j] += value * own[i + j];
    }
    result += total(sums);
  }
  return result;
}

// Fused backward: per stored value and vector two loads, one store and two multiply-adds.
float probe_backward(const Lanes* x, Lanes* dx, std::int64_t vectors, std::int64_t passes, int threads) {
  float result = 0;
#pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(+ : result)
  for (int thread = 0; thread < threads; ++thread) {
    const Lanes* own = x + thread * vectors;
    Lanes* out = dx + thread * vectors;
    Lanes sums[UNROLL] = {};
    for (std::int64_t pass = 0; pass < passes; ++pass) {
      const Lanes dy = Lanes{} + 1.0f / float(pass + 1), value = dy * dy;
      for (std::int64_t i = 0; i < vectors; i += UNROLL) {
        Lanes more[UNROLL];
        for (int j = 0; j < UNROLL; ++j) sums[j] += dy * own[i + j];
        for (int j = 0; j < UNROLL; ++j) more[j] = out[i + j] + value * dy;
        for (int j = 0; j < UNROLL; ++j) out[i + j] = more[j];
      }
    }
    result += total(sums);
  }
  return result;
}

}  // extern "C"
