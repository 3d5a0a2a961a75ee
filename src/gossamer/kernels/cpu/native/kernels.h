// The kernels as a table of functions, one table for each instruction set.
#pragma once
#include <cstdint>

namespace gossamer {

// A convolution over packed activations [tiles][channels][height][width][16].
struct Geometry {
  std::int64_t tiles, in_channels, height, width, out_channels, kernel_height, kernel_width;
  std::int64_t stride_height, stride_width, pad_height, pad_width, dilation_height, dilation_width;
  std::int64_t groups, out_height, out_width;
};

// Rows of a product, of which those entries are looked for whose |value| + row_slack * column_slack exceeds `limit`.
struct Screen {
  std::int64_t first_row, rows, columns;
  const float *row_slack, *column_slack;  // of all rows, of all columns
  float limit;
};

// A pooling over planes of packed activations [height][width][16].
struct Window {
  std::int64_t height, width, kernel_height, kernel_width, stride_height, stride_width, pad_height, pad_width;
  std::int64_t dilation_height, dilation_width, out_height, out_width;
};

// The leading rows and columns of a block-diagonal matrix, blocks of `length`, along the middle axis of a tensor
// [outer][columns][inner]; or transposed. convolution: inner length of Bluestein's algorithm, 0 without it.
struct Transform {
  std::int64_t outer, inner, rows, columns, length, transposed, convolution;
};

// The n best of every four of a weight [rows][inputs][positions]: along = 0 inputs, 1 rows, 2 both (then n is 2).
struct Patterns {
  std::int64_t rows, inputs, positions;
  std::int32_t along, n, magnitudes;  // magnitudes: whether scores are compared without their sign
};

// A matrix of which some side x side blocks exist, each row-major in `values`. positions: of the blocks, in the matrix of
// all blocks, ascending. The rest is found by `arrange_blocks`: where the blocks of each block row and block column begin,
// and the numbers of the blocks by columns.
struct Blocks {
  std::int64_t rows, columns, side;
  const std::int32_t* positions;
  std::int64_t row_blocks, column_blocks;
  const std::int32_t *row_starts, *column_starts, *order;
};

bool arrange_blocks(Blocks* all, std::int64_t count, std::int32_t* starts, std::int32_t* order);

struct Kernels {
  // [batch][features] -> [tiles][features][16], missing lanes zero; and back.
  void (*pack)(const float* x, float* packed, std::int64_t batch, std::int64_t features, int threads);
  void (*unpack)(const float* packed, float* x, std::int64_t batch, std::int64_t features, int threads);
  // y [tiles][rows][16] = W x [tiles][columns][16] + bias [rows] (or null).
  void (*linear_forward)(const std::uint8_t* index, const float* values, const float* bias, const float* x, float* y,
                         std::int64_t tiles, int threads);
  // dx = W^T dy and dvalues = (dy x^T) on the support; either may be null.
  void (*linear_backward)(const std::uint8_t* index, const float* values, const float* x, const float* dy, float* dx,
                          float* dvalues, std::int64_t tiles, int threads);
  void (*conv_forward)(const std::uint8_t* index, const float* values, const float* bias, const float* x, float* y,
                       const Geometry* geometry, int threads);
  void (*conv_backward)(const std::uint8_t* index, const float* values, const float* x, const float* dy, float* dx,
                        float* dvalues, const Geometry* geometry, int threads);
  // Ascending flat positions; `found` has room for rows * (columns + 1). Returns how many.
  std::int64_t (*screen)(const float* values, const Screen* given, std::int64_t* found, int threads);
  void (*sampled_product)(const float* left, const float* right, std::int64_t samples, std::int64_t columns,
                          const std::int64_t* positions, std::int64_t count, float* out, int threads);
  void (*max_pool_forward)(const float* x, float* out, std::int64_t* places, std::int64_t planes, const Window* window,
                           int threads);
  void (*max_pool_backward)(const float* slope, const std::int64_t* places, float* dx, std::int64_t planes,
                            const Window* window, int threads);
  // y from z, and dz from dy: see taps.h. in_channels: groups x parts x rank, the channels of z.
  void (*taps_forward)(const float* z, const float* mix, const float* filters, float* y, const Geometry* geometry,
                       std::int64_t parts, int threads);
  void (*taps_backward)(const float* dy, const float* mix, const float* filters, float* dz, const Geometry* geometry,
                        std::int64_t parts, int threads);
  // signs: of the columns, or null. factors, tables: of transforms/tables.py.
  void (*cosine)(const float* x, const float* signs, float* y, const Transform* transform, const std::int64_t* factors,
                 const float* tables, int threads);
  void (*hadamard)(const float* x, const float* signs, float* y, const Transform* transform, int threads);
  // active, view: may be null. view: the scores that are chosen, 0 elsewhere. See patterns.h.
  int (*patterns)(const float* scores, const std::uint8_t* active, std::uint8_t* mask, float* view,
                  const Patterns* given, int threads);
  // As linear_forward and linear_backward. The side of the blocks is a multiple of 4.
  void (*block_forward)(const Blocks* all, const float* values, const float* bias, const float* x, float* y,
                        std::int64_t tiles, int threads);
  void (*block_backward)(const Blocks* all, const float* values, const float* x, const float* dy, float* dx,
                         float* dvalues, std::int64_t tiles, int threads);
};

}  // namespace gossamer
