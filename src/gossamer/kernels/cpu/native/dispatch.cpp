// The C interface: raw pointers in, the kernels of the chosen instruction set behind it.
#include <cstddef>
#include <cstring>
#include <vector>

#include "kernels.h"

#define GOSSAMER_EXPORT extern "C" __attribute__((visibility("default")))

extern "C" const gossamer::Kernels gossamer_kernels_portable;
#if defined(GOSSAMER_X86)
extern "C" const gossamer::Kernels gossamer_kernels_avx2;
extern "C" const gossamer::Kernels gossamer_kernels_avx512;
#endif

namespace {

using gossamer::Kernels;
using std::int64_t;
using std::uint8_t;

const Kernels* find(const char* name) {
  if (!std::strcmp(name, "portable")) return &gossamer_kernels_portable;
#if defined(GOSSAMER_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!std::strcmp(name, "avx2") && avx2) return &gossamer_kernels_avx2;
  if (!std::strcmp(name, "avx512") && avx512) return &gossamer_kernels_avx512;
#endif
  return nullptr;
}

const Kernels* chosen = &gossamer_kernels_portable;

// Blocks with the memory that their arrangement takes.
struct Arranged {
  gossamer::Blocks all;
  std::vector<std::int32_t> starts, order;
  bool valid;

  Arranged(const std::int32_t* positions, int64_t count, int64_t rows, int64_t columns, int64_t side)
      : all{rows, columns, side, positions, 0, 0, nullptr, nullptr, nullptr},
        starts(static_cast<std::size_t>((rows + side - 1) / side + (columns + side - 1) / side + 2)),
        order(static_cast<std::size_t>(count)),
        valid(gossamer::arrange_blocks(&all, count, starts.data(), order.data())) {}
};

}  // namespace

// Uses the kernels called "avx512", "avx2" or "portable" from now on; -1 if this machine cannot run them.
GOSSAMER_EXPORT int gossamer_use(const char* name) {
  const Kernels* found = find(name);
  if (!found) return -1;
  chosen = found;
  return 0;
}

GOSSAMER_EXPORT void gossamer_pack(const float* x, float* packed, int64_t batch, int64_t features, int threads) {
  chosen->pack(x, packed, batch, features, threads);
}

GOSSAMER_EXPORT void gossamer_unpack(const float* packed, float* x, int64_t batch, int64_t features, int threads) {
  chosen->unpack(packed, x, batch, features, threads);
}

GOSSAMER_EXPORT void gossamer_linear_forward(const uint8_t* index, const float* values, const float* bias,
                                             const float* x, float* y, int64_t tiles, int threads) {
  chosen->linear_forward(index, values, bias, x, y, tiles, threads);
}

GOSSAMER_EXPORT void gossamer_linear_backward(const uint8_t* index, const float* values, const float* x,
                                              const float* dy, float* dx, float* dvalues, int64_t tiles, int threads) {
  chosen->linear_backward(index, values, x, dy, dx, dvalues, tiles, threads);
}

GOSSAMER_EXPORT void gossamer_conv_forward(const uint8_t* index, const float* values, const float* bias,
                                           const float* x, float* y, const gossamer::Geometry* geometry, int threads) {
  chosen->conv_forward(index, values, bias, x, y, geometry, threads);
}

GOSSAMER_EXPORT void gossamer_conv_backward(const uint8_t* index, const float* values, const float* x,
                                            const float* dy, float* dx, float* dvalues,
                                            const gossamer::Geometry* geometry, int threads) {
  chosen->conv_backward(index, values, x, dy, dx, dvalues, geometry, threads);
}

// Where rows of a product, `values`, may exceed a limit: see `Screen`.
GOSSAMER_EXPORT int64_t gossamer_screen(const float* values, int64_t first_row, int64_t rows, int64_t columns,
                                        const float* row_slack, const float* column_slack, float limit,
                                        int64_t* found, int threads) {
  const gossamer::Screen given{first_row, rows, columns, row_slack, column_slack, limit};
  return chosen->screen(values, &given, found, threads);
}

GOSSAMER_EXPORT void gossamer_sampled_product(const float* left, const float* right, int64_t samples, int64_t columns,
                                              const int64_t* positions, int64_t count, float* out, int threads) {
  chosen->sampled_product(left, right, samples, columns, positions, count, out, threads);
}

GOSSAMER_EXPORT void gossamer_max_pool_forward(const float* x, float* out, int64_t* places, int64_t planes,
                                               const gossamer::Window* window, int threads) {
  chosen->max_pool_forward(x, out, places, planes, window, threads);
}

GOSSAMER_EXPORT void gossamer_max_pool_backward(const float* slope, const int64_t* places, float* dx, int64_t planes,
                                                const gossamer::Window* window, int threads) {
  chosen->max_pool_backward(slope, places, dx, planes, window, threads);
}

GOSSAMER_EXPORT void gossamer_taps_forward(const float* z, const float* mix, const float* filters, float* y,
                                           const gossamer::Geometry* geometry, int64_t parts, int threads) {
  chosen->taps_forward(z, mix, filters, y, geometry, parts, threads);
}

GOSSAMER_EXPORT void gossamer_taps_backward(const float* dy, const float* mix, const float* filters, float* dz,
                                            const gossamer::Geometry* geometry, int64_t parts, int threads) {
  chosen->taps_backward(dy, mix, filters, dz, geometry, parts, threads);
}

GOSSAMER_EXPORT void gossamer_cosine(const float* x, const float* signs, float* y, const gossamer::Transform* transform,
                                     const int64_t* factors, const float* tables, int threads) {
  chosen->cosine(x, signs, y, transform, factors, tables, threads);
}

GOSSAMER_EXPORT void gossamer_hadamard(const float* x, const float* signs, float* y,
                                       const gossamer::Transform* transform, int threads) {
  chosen->hadamard(x, signs, y, transform, threads);
}

// The best of every four entries, or every 4 x 4 tile: see `Patterns`. Returns 0 if a score is not finite.
GOSSAMER_EXPORT int gossamer_patterns(const float* scores, const uint8_t* active, uint8_t* mask, float* view,
                                      int64_t rows, int64_t inputs, int64_t positions, int along, int n,
                                      int magnitudes, int threads) {
  const gossamer::Patterns given{rows, inputs, positions, along, n, magnitudes};
  return chosen->patterns(scores, active, mask, view, &given, threads);
}

// Of `count` blocks at `positions`; -1 if these do not ascend within the matrix.
GOSSAMER_EXPORT int gossamer_block_forward(const std::int32_t* positions, int64_t count, int64_t rows, int64_t columns,
                                           int64_t side, const float* values, const float* bias, const float* x,
                                           float* y, int64_t tiles, int threads) {
  Arranged blocks(positions, count, rows, columns, side);
  if (!blocks.valid) return -1;
  chosen->block_forward(&blocks.all, values, bias, x, y, tiles, threads);
  return 0;
}

GOSSAMER_EXPORT int gossamer_block_backward(const std::int32_t* positions, int64_t count, int64_t rows, int64_t columns,
                                            int64_t side, const float* values, const float* x, const float* dy,
                                            float* dx, float* dvalues, int64_t tiles, int threads) {
  Arranged blocks(positions, count, rows, columns, side);
  if (!blocks.valid) return -1;
  chosen->block_backward(&blocks.all, values, x, dy, dx, dvalues, tiles, threads);
  return 0;
}
