// Building, checking and reading the sparse index (index.h). Nothing here depends on the instruction set.
#include "index_build.h"

namespace {

using namespace gossamer;
using std::int32_t;
using std::int64_t;
using std::uint16_t;
using std::uint8_t;

// The values of one row in one block: numbers `begin` to `begin + count` of the given positions.
struct Segment {
  int64_t begin;
  int32_t column_block, count, row;
};

// Positions must ascend strictly and lie in the matrix.
bool ascending(const int64_t* flat, int64_t count, int64_t size, int threads) {
  bool fine = count == 0 || (flat[0] >= 0 && flat[count - 1] < size);
#pragma omp parallel for schedule(static) num_threads(threads) reduction(&& : fine)
  for (int64_t i = 1; i < count; ++i) fine = fine && flat[i] > flat[i - 1];
  return fine;
}

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

RowBlock cut(const int64_t* flat, const Header& h, int64_t row_block) {
  const int64_t first_row = row_block * h.row_block, end = smaller(h.rows, first_row + h.row_block) * h.columns;
  const int64_t first = std::lower_bound(flat, flat + h.count, first_row * h.columns) - flat;
  RowBlock out{{}, first, 0};
  int64_t row_start = 0, row_end = -1, block_end = -1;
  for (int64_t i = first; i < h.count && flat[i] < end; ++i) {
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

// segment, group: numbers of the first ones of this row block.
void fill_rows(const int64_t* flat, const Index& index, int64_t rb, const RowBlock& from, int64_t segment,
               int64_t group, int64_t* order) {
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
        order[value] = i;
      }
    }
  }
}

void fill(const int64_t* flat, const Index& index, int64_t* order, int threads) {
  std::vector<RowBlock> parts(static_cast<size_t>(index.row_blocks));
  std::vector<int64_t> segment(parts.size() + 1, 0), group(parts.size() + 1, 0);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (size_t rb = 0; rb < parts.size(); ++rb) parts[rb] = cut(flat, *index.header, static_cast<int64_t>(rb));
#pragma omp single
    for (size_t rb = 0; rb < parts.size(); ++rb) {
      segment[rb + 1] = segment[rb] + static_cast<int64_t>(parts[rb].segments.size());
      group[rb + 1] = group[rb] + parts[rb].groups;
    }
#pragma omp for schedule(dynamic, 1)
    for (size_t rb = 0; rb < parts.size(); ++rb) {
      fill_rows(flat, index, static_cast<int64_t>(rb), parts[rb], segment[rb], group[rb], order);
    }
  }
  end_index(index, segment.back(), group.back());
}

template <class Visit>  // visit(number of the value, row, column)
void walk(const Index& index, int64_t row_block, Visit visit) {
  const Header& h = *index.header;
  for (int64_t cb = 0; cb < index.column_blocks; ++cb) {
    const Block* block = index.blocks + row_block * index.column_blocks + cb;
    int64_t value = block->first, segment = block->segment;
    for (int32_t g = block->group; g < block[1].group; ++g) {
      for (int r = 0; r < index.groups[g].rows; ++r, ++segment) {
        const int64_t row = row_block * h.row_block + index.rows[segment];
        for (int i = 0; i < index.groups[g].values; ++i, ++value) {
          visit(value, row, cb * h.column_block + index.columns[value]);
        }
      }
    }
  }
}

// Whether blocks, groups and rows add up, so that a walk stays inside the buffer.
bool adds_up(const Index& index) {
  const Header& h = *index.header;
  const int64_t blocks = index.row_blocks * index.column_blocks;
  const int64_t room = (h.rows_at - h.groups_at) / static_cast<int64_t>(sizeof(Group));
  if (h.groups < 0 || h.groups > room || h.segments < 0 || h.segments > (h.columns_at - h.rows_at) / 2) return false;
  int64_t value = 0, segment = 0, group = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const Block &block = index.blocks[b], &next = index.blocks[b + 1];
    if (block.first != value || block.segment != segment || block.group != group) return false;
    if (next.group < group || next.group > h.groups) return false;
    int previous = 0;
    for (; group < next.group; ++group) {
      const Group& one = index.groups[group];
      if (one.values <= previous || one.rows == 0) return false;
      previous = one.values;
      value += static_cast<int64_t>(one.values) * one.rows;
      segment += one.rows;
    }
    if (value > h.count || segment > h.segments) return false;
  }
  const Block& end = index.blocks[blocks];
  return value == h.count && segment == h.segments && group == h.groups && end.first == value && end.segment == segment;
}

// Rows ascend in a group and are in the matrix and in one group only; columns ascend in a row and are in the matrix.
bool in_order(const Index& index) {
  const Header& h = *index.header;
  std::vector<uint8_t> seen(static_cast<size_t>(h.row_block));
  for (int64_t rb = 0; rb < index.row_blocks; ++rb) {
    const int64_t height = smaller(h.row_block, h.rows - rb * h.row_block);
    for (int64_t cb = 0; cb < index.column_blocks; ++cb) {
      const int64_t width = smaller(h.column_block, h.columns - cb * h.column_block);
      const Block* block = index.blocks + rb * index.column_blocks + cb;
      std::fill(seen.begin(), seen.end(), 0);
      const uint16_t* row = index.rows + block->segment;
      const uint16_t* column = index.columns + block->first;
      for (int32_t g = block->group; g < block[1].group; ++g) {
        int64_t last_row = -1;
        for (int r = 0; r < index.groups[g].rows; ++r, ++row) {
          if (*row <= last_row || *row >= height || seen[*row]) return false;
          last_row = *row, seen[*row] = 1;
          int64_t last_column = -1;
          for (int i = 0; i < index.groups[g].values; ++i, ++column) {
            if (*column <= last_column || *column >= width) return false;
            last_column = *column;
          }
        }
      }
    }
  }
  return true;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int64_t gossamer_index_bytes(int64_t rows, int64_t columns, int64_t count,
                                                                    int64_t row_block, int64_t column_block) {
  if (!sensible(rows, columns, count, row_block, column_block)) return -1;
  return layout(rows, columns, count, row_block, column_block).bytes;
}

// flat: strictly ascending positions. order: for each stored value the number of its position in `flat`. -1: bad input.
__attribute__((visibility("default"))) int gossamer_index_build(const int64_t* flat, int64_t count, int64_t rows,
                                                                int64_t columns, int64_t row_block, int64_t column_block,
                                                                uint8_t* bytes, int64_t* order, int threads) {
  if (!sensible(rows, columns, count, row_block, column_block)) return -1;
  const Header header = layout(rows, columns, count, row_block, column_block);
  if (!ascending(flat, count, rows * columns, threads)) return -1;
  start_index(bytes, header);
  fill(flat, read_index(bytes), order, threads);
  return 0;
}

// 0 if the bytes are an index of this shape and count, otherwise the number of the check that failed.
__attribute__((visibility("default"))) int gossamer_index_check(const uint8_t* bytes, int64_t size, int64_t rows,
                                                                int64_t columns, int64_t count) {
  Header h;
  if (size < static_cast<int64_t>(sizeof(Header))) return 1;
  std::memcpy(&h, bytes, sizeof(Header));
  if (h.magic != MAGIC) return 1;
  if (h.rows != rows || h.columns != columns || h.count != count) return 2;
  if (!sensible(rows, columns, count, h.row_block, h.column_block)) return 3;
  const Header expected = layout(rows, columns, count, h.row_block, h.column_block);
  if (h.groups_at != expected.groups_at || h.rows_at != expected.rows_at || h.columns_at != expected.columns_at) return 3;
  if (h.bytes != expected.bytes || size != h.bytes) return 3;
  const Index index = read_index(bytes);
  if (!adds_up(index)) return 4;
  return in_order(index) ? 0 : 5;
}

__attribute__((visibility("default"))) void gossamer_index_positions(const uint8_t* bytes, int64_t* flat) {
  const Index index = read_index(bytes);
  const int64_t columns = index.header->columns;
  for (int64_t rb = 0; rb < index.row_blocks; ++rb) {
    walk(index, rb, [&](int64_t value, int64_t row, int64_t column) { flat[value] = row * columns + column; });
  }
}

// The values of a dense row-major matrix, in the order of the index.
__attribute__((visibility("default"))) void gossamer_gather(const uint8_t* bytes, const float* weight, float* values,
                                                            int threads) {
  const Index index = read_index(bytes);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t rb = 0; rb < index.row_blocks; ++rb) {
    walk(index, rb, [&](int64_t value, int64_t row, int64_t column) {
      values[value] = weight[row * index.header->columns + column];
    });
  }
}
}
