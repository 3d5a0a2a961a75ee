// Building the sparse index (index.h) from ascending positions, row block by row block.
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

// The values of one row in one block: numbers `begin` to `begin + count` of the given positions.
struct Segment {
  int64_t begin;
  int32_t column_block, count, row;
};

// By counting, stable. key(segment): from 0 to `largest`.
template <class Key>
void sort_by(std::vector<Segment>& segments, int32_t largest, Key key) {
  std::vector<int64_t> next(static_cast<size_t>(largest) + 2, 0);
  for (const Segment& one : segments) ++next[static_cast<size_t>(key(one)) + 1];
  for (size_t i = 1; i < next.size(); ++i) next[i] += next[i - 1];
  std::vector<Segment> sorted(segments.size());
  for (const Segment& one : segments) sorted[static_cast<size_t>(next[static_cast<size_t>(key(one))]++)] = one;
  segments.swap(sorted);
}

// What is in one row block, in the order of the index.
struct RowBlock {
  std::vector<Segment> segments;
  int64_t first, groups;  // number of its first value; how many groups
};

// The row block's positions are numbers `first` to `end` of `flat`.
inline RowBlock cut(const int64_t* flat, int64_t first, int64_t end, const Header& h, int64_t row_block) {
  const int64_t first_row = row_block * h.row_block;
  RowBlock out{{}, first, 0};
  int64_t row_start = 0, row_end = -1, block_end = -1;
  for (int64_t i = first; i < end; ++i) {
    if (flat[i] >= row_end) {
      row_start = flat[i] / h.columns * h.columns;
      row_end = row_start + h.columns;
      block_end = row_start;
    }
    if (flat[i] >= block_end) {
      const int64_t column_block = (flat[i] - row_start) / h.column_block;
      block_end = smaller(row_end, row_start + (column_block + 1) * h.column_block);
      const int64_t row = row_start / h.columns - first_row;
      out.segments.push_back({i, static_cast<int32_t>(column_block), 0, static_cast<int32_t>(row)});
    }
    ++out.segments.back().count;
  }
  int32_t longest = 0, last = 0;
  for (const Segment& one : out.segments) longest = std::max(longest, one.count), last = std::max(last, one.column_block);
  sort_by(out.segments, longest, [](const Segment& one) { return one.count; });
  sort_by(out.segments, last, [](const Segment& one) { return one.column_block; });
  const Segment* before = nullptr;
  for (const Segment& one : out.segments) {
    out.groups += !before || before->column_block != one.column_block || before->count != one.count;
    before = &one;
  }
  return out;
}

// segment, group: numbers of the first ones of this row block. put(number of the value, number of its position).
template <class Put>
void fill_rows(const int64_t* flat, const Index& index, int64_t rb, const RowBlock& from, int64_t segment,
               int64_t group, Put put) {
  const Header& h = *index.header;
  Block* block = const_cast<Block*>(index.blocks) + rb * index.column_blocks;
  Group* groups = const_cast<Group*>(index.groups);
  uint16_t* rows = const_cast<uint16_t*>(index.rows);
  uint16_t* columns = const_cast<uint16_t*>(index.columns);
  int64_t value = from.first;
  auto next = from.segments.begin();
  for (int64_t cb = 0; cb < index.column_blocks; ++cb, ++block) {
    *block = {value, static_cast<int32_t>(group), static_cast<int32_t>(segment)};
    int32_t last = 0;
    for (; next != from.segments.end() && next->column_block == cb; ++next) {
      if (next->count != last) groups[group++] = {static_cast<uint16_t>(last = next->count), 0};
      ++groups[group - 1].rows;
      rows[segment++] = static_cast<uint16_t>(next->row);
      const int64_t start = (rb * h.row_block + next->row) * h.columns + cb * h.column_block;
      for (int64_t i = next->begin; i < next->begin + next->count; ++i, ++value) {
        columns[value] = static_cast<uint16_t>(flat[i] - start);
        put(value, i);
      }
    }
  }
}

// The index of `flat`; its header is written. first: of each row block, the number of its first position, and the end;
// prepare(row block) is called before these positions are read. put: see fill_rows.
template <class Prepare, class Put>
void fill(const int64_t* flat, const int64_t* first, const Index& index, int threads, Prepare prepare, Put put) {
  std::vector<RowBlock> parts(static_cast<size_t>(index.row_blocks));
  std::vector<int64_t> segment(parts.size() + 1, 0), group(parts.size() + 1, 0);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (size_t rb = 0; rb < parts.size(); ++rb) {
      prepare(static_cast<int64_t>(rb));
      parts[rb] = cut(flat, first[rb], first[rb + 1], *index.header, static_cast<int64_t>(rb));
    }
#pragma omp single
    for (size_t rb = 0; rb < parts.size(); ++rb) {
      segment[rb + 1] = segment[rb] + static_cast<int64_t>(parts[rb].segments.size());
      group[rb + 1] = group[rb] + parts[rb].groups;
    }
#pragma omp for schedule(dynamic, 1)
    for (size_t rb = 0; rb < parts.size(); ++rb) {
      fill_rows(flat, index, static_cast<int64_t>(rb), parts[rb], segment[rb], group[rb], put);
    }
  }
  Header* own = const_cast<Header*>(index.header);
  own->groups = group.back(), own->segments = segment.back();
  const_cast<Block*>(index.blocks)[index.row_blocks * index.column_blocks] = {
      own->count, static_cast<int32_t>(group.back()), static_cast<int32_t>(segment.back())};
}

// An empty index for `count` values.
inline void start_index(uint8_t* bytes, const Header& header) {
  std::memset(bytes, 0, static_cast<size_t>(header.columns_at));
  std::memcpy(bytes, &header, sizeof(Header));
}

}  // namespace
}  // namespace gossamer
