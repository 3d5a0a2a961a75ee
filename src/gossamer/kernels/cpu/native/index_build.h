// What everything that makes a sparse index (index.h) begins and ends with.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "index.h"

namespace gossamer {
namespace {

using std::int32_t;
using std::int64_t;
using std::uint16_t;
using std::uint8_t;

// Offsets of the parts. Room for as many rows and groups as any arrangement of `count` values can need: a block with g
// different numbers of values per row holds at least 1 + 2 + ... + g of them, so blocks hold sqrt(2 * values) groups.
inline Header layout(int64_t rows, int64_t columns, int64_t count, int64_t row_block, int64_t column_block) {
  const int64_t row_blocks = pieces(rows, row_block), column_blocks = pieces(columns, column_block);
  const int64_t blocks = row_blocks * column_blocks;
  const int64_t segments = smaller(count, rows * column_blocks);
  const int64_t distinct = static_cast<int64_t>(std::sqrt(2.0 * static_cast<double>(count) * static_cast<double>(blocks)));
  const int64_t groups = smaller(smaller(distinct + 1, segments), blocks * smaller(row_block, column_block));
  Header header{MAGIC, rows, columns, count, row_block, column_block, 0, 0, 0, 0, 0, 0};
  header.groups_at = static_cast<int64_t>(sizeof(Header)) + (blocks + 1) * static_cast<int64_t>(sizeof(Block));
  header.rows_at = header.groups_at + groups * static_cast<int64_t>(sizeof(Group));
  header.columns_at = header.rows_at + segments * 2;
  header.bytes = header.columns_at + count * 2;
  return header;
}

inline bool sensible(int64_t rows, int64_t columns, int64_t count, int64_t row_block, int64_t column_block) {
  const bool sizes = rows > 0 && columns > 0 && count >= 0 && rows <= (int64_t{1} << 31) && columns <= (int64_t{1} << 31);
  const bool blocks = row_block > 0 && row_block <= LARGEST_BLOCK && column_block > 0 && column_block <= LARGEST_BLOCK;
  return sizes && blocks && count <= rows * columns;
}

// An empty index for `header.count` values.
inline void start_index(uint8_t* bytes, const Header& header) {
  std::memset(bytes, 0, static_cast<size_t>(header.columns_at));
  std::memcpy(bytes, &header, sizeof(Header));
}

// Its rows, groups and columns are written: what remains.
inline void end_index(const Index& index, int64_t segments, int64_t groups) {
  Header* own = const_cast<Header*>(index.header);
  own->groups = groups, own->segments = segments;
  const_cast<Block*>(index.blocks)[index.row_blocks * index.column_blocks] = {
      own->count, static_cast<int32_t>(groups), static_cast<int32_t>(segments)};
}

}  // namespace
}  // namespace gossamer
