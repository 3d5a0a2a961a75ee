// Building, checking and reading the sparse index (index.h). Nothing here depends on the instruction set.
#include "index_build.h"

namespace {

using namespace gossamer;
using std::int32_t;
using std::int64_t;
using std::uint16_t;
using std::uint8_t;

// Positions must ascend strictly and lie in the matrix.
bool ascending(const int64_t* flat, int64_t count, int64_t size, int threads) {
  bool fine = count == 0 || (flat[0] >= 0 && flat[count - 1] < size);
#pragma omp parallel for schedule(static) num_threads(threads) reduction(&& : fine)
  for (int64_t i = 1; i < count; ++i) fine = fine && flat[i] > flat[i - 1];
  return fine;
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
  const Index index = read_index(bytes);
  std::vector<int64_t> first(static_cast<size_t>(index.row_blocks) + 1);
  for (size_t rb = 0; rb < first.size(); ++rb) {
    const int64_t begin = static_cast<int64_t>(rb) * row_block * columns;
    first[rb] = std::lower_bound(flat, flat + count, begin) - flat;
  }
  fill(flat, first.data(), index, threads, [](int64_t) {}, [&](int64_t value, int64_t i) { order[value] = i; });
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
