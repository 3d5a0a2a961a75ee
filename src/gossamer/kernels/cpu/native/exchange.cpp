// An exchange of entries: from the index before it, what is kept of it and what is born, to the index after it. Nothing is
// sorted but the rows of a block, and no list of all positions is made.
#include "index_build.h"

#define GOSSAMER_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace gossamer;

constexpr int64_t MOST_CELLS = 1 << 22;  // of a row block

// Of each row of a row block, the number of its first position in an ascending list; and the end.
std::vector<int64_t> starts(const int64_t* flat, int64_t count, const Header& h, int64_t row_block) {
  const int64_t first = row_block * h.row_block, rows = smaller(h.row_block, h.rows - first);
  std::vector<int64_t> at(static_cast<size_t>(rows) + 1);
  const int64_t* next = std::lower_bound(flat, flat + count, first * h.columns);
  for (int64_t row = 0; row <= rows; ++row) {
    while (next < flat + count && *next < (first + row) * h.columns) ++next;
    at[static_cast<size_t>(row)] = next - flat;
  }
  return at;
}

// What stands before an exchange, and what comes.
struct Change {
  Index index;
  const uint8_t* kept;  // of each stored value
  const int64_t* born;  // ascending, of inactive entries
  int64_t born_count;
};

// The part of a row in a column block.
struct Cell {
  int32_t value, born;        // numbers of its first value before, and of its first newborn entry
  uint16_t held, stay, fresh; // how many values it had, keeps and gets
};

// A row block after an exchange.
struct Rows {
  std::vector<Cell> cells;      // [rows][column blocks]
  std::vector<uint16_t> order;  // rows with values: of one column block after the other, by their number
  std::vector<int32_t> ends;    // of the column blocks, in `order`
  int64_t values, groups;
};

// Rows of a column block that have values are put behind `out.order`, by their number of values.
void sort_rows(Rows& out, int64_t rows, int64_t blocks, int64_t cb, int64_t width) {
  std::vector<int32_t> next(static_cast<size_t>(width) + 2, 0);
  auto many = [&](int64_t row) {
    const Cell& cell = out.cells[static_cast<size_t>(row * blocks + cb)];
    return static_cast<size_t>(cell.stay) + cell.fresh;
  };
  for (int64_t row = 0; row < rows; ++row) ++next[many(row) + 1];
  int32_t at = static_cast<int32_t>(out.order.size());
  next[0] = 0;
  for (size_t i = 2; i < next.size(); ++i) {
    const int32_t here = next[i];
    out.groups += here > 0;
    next[i - 1] = at, at += here;
  }
  out.order.resize(static_cast<size_t>(at));
  out.ends.push_back(at);
  for (int64_t row = 0; row < rows; ++row) {
    if (const size_t count = many(row)) {
      out.order[static_cast<size_t>(next[count]++)] = static_cast<uint16_t>(row);
      out.values += static_cast<int64_t>(count);
    }
  }
}

Rows count_rows(const Change& c, int64_t rb) {
  const Header& h = *c.index.header;
  const int64_t first = rb * h.row_block, rows = smaller(h.row_block, h.rows - first), blocks = c.index.column_blocks;
  Rows out{std::vector<Cell>(static_cast<size_t>(rows * blocks), Cell{}), {}, {}, 0, 0};
  rows_of(c.index, rb, [&](int row, int64_t value, int count, int64_t cb) {
    Cell& cell = out.cells[static_cast<size_t>(row * blocks + cb)];
    cell.value = static_cast<int32_t>(value), cell.held = static_cast<uint16_t>(count);
    for (int i = 0; i < count; ++i) cell.stay = static_cast<uint16_t>(cell.stay + c.kept[value + i]);
  });
  const int64_t* born = std::lower_bound(c.born, c.born + c.born_count, first * h.columns);
  const int64_t* end = std::lower_bound(born, c.born + c.born_count, (first + rows) * h.columns);
  int64_t row_start = 0, row_end = -1, block_end = -1;
  Cell* cell = nullptr;
  for (; born < end; ++born) {
    if (*born >= row_end) row_start = *born / h.columns * h.columns, row_end = row_start + h.columns, block_end = row_start;
    if (*born >= block_end) {
      const int64_t cb = (*born - row_start) / h.column_block;
      block_end = smaller(row_end, row_start + (cb + 1) * h.column_block);
      cell = &out.cells[static_cast<size_t>((row_start / h.columns - first) * blocks + cb)];
      cell->born = static_cast<int32_t>(born - c.born);
    }
    ++cell->fresh;
  }
  for (int64_t cb = 0; cb < blocks; ++cb) sort_rows(out, rows, blocks, cb, smaller(h.column_block, h.columns));
  return out;
}

// The values of one cell after the exchange, from number `value` on; returns the number of the next one. start: position
// of the cell's first column.
inline int64_t merge(const Change& c, const Cell& cell, int64_t start, int64_t value, uint16_t* columns,
                              int32_t* source) {
  const int64_t *born = c.born + cell.born, *born_end = born + cell.fresh;
  for (int32_t i = cell.value; i < cell.value + cell.held; ++i) {
    if (!c.kept[i]) continue;
    const uint16_t column = c.index.columns[i];
    for (; born < born_end && *born < start + column; ++born, ++value) {
      columns[value] = static_cast<uint16_t>(*born - start), source[value] = -1;
    }
    columns[value] = column, source[value++] = i;
  }
  for (; born < born_end; ++born, ++value) {
    columns[value] = static_cast<uint16_t>(*born - start), source[value] = -1;
  }
  return value;
}

// value, segment, group: numbers of the first ones of this row block.
void write_rows(const Change& c, const Index& index, int64_t rb, const Rows& from, int64_t value, int64_t segment,
                int64_t group, int32_t* source) {
  const Header& h = *index.header;
  Block* block = const_cast<Block*>(index.blocks) + rb * index.column_blocks;
  Group* groups = const_cast<Group*>(index.groups);
  uint16_t* rows = const_cast<uint16_t*>(index.rows);
  uint16_t* columns = const_cast<uint16_t*>(index.columns);
  int32_t next = 0;
  for (int64_t cb = 0; cb < index.column_blocks; ++cb, ++block) {
    *block = {value, static_cast<int32_t>(group), static_cast<int32_t>(segment)};
    int last = 0;
    for (; next < from.ends[static_cast<size_t>(cb)]; ++next) {
      const uint16_t row = from.order[static_cast<size_t>(next)];
      const Cell& cell = from.cells[static_cast<size_t>(row * index.column_blocks + cb)];
      const int count = cell.stay + cell.fresh;
      if (count != last) groups[group++] = {static_cast<uint16_t>(last = count), 0};
      ++groups[group - 1].rows;
      rows[segment++] = row;
      value = merge(c, cell, (rb * h.row_block + row) * h.columns + cb * h.column_block, value, columns, source);
    }
  }
}

}  // namespace

// kept: a byte 0 or 1 for each value of the index `before`. born: ascending positions of inactive entries. Writes an index
// with blocks of the same size to `after`, and for each of its values the place before, or -1. Returns -1 if the matrix
// has too many blocks for that.
GOSSAMER_EXPORT int gossamer_exchange(const uint8_t* before, const uint8_t* kept, const int64_t* born, int64_t born_count,
                                      int64_t count, uint8_t* after, int32_t* source, int threads) {
  const Change change{read_index(before), kept, born, born_count};
  const Header& h = *change.index.header;
  if (h.row_block * change.index.column_blocks > MOST_CELLS) return -1;
  start_index(after, layout(h.rows, h.columns, count, h.row_block, h.column_block));
  const Index index = read_index(after);
  std::vector<Rows> parts(static_cast<size_t>(index.row_blocks));
  std::vector<int64_t> value(parts.size() + 1, 0), segment(value), group(value);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (size_t rb = 0; rb < parts.size(); ++rb) parts[rb] = count_rows(change, static_cast<int64_t>(rb));
#pragma omp single
    for (size_t rb = 0; rb < parts.size(); ++rb) {
      value[rb + 1] = value[rb] + parts[rb].values;
      segment[rb + 1] = segment[rb] + static_cast<int64_t>(parts[rb].order.size());
      group[rb + 1] = group[rb] + parts[rb].groups;
    }
#pragma omp for schedule(dynamic, 1)
    for (size_t rb = 0; rb < parts.size(); ++rb) {
      write_rows(change, index, static_cast<int64_t>(rb), parts[rb], value[rb], segment[rb], group[rb], source);
    }
  }
  end_index(index, segment.back(), group.back());
  return 0;
}

// Leaves only those of some ascending positions that are inactive; returns how many.
GOSSAMER_EXPORT int64_t gossamer_inactive(const uint8_t* bytes, int64_t* flat, int64_t count, int threads) {
  const Index index = read_index(bytes);
  const Header& h = *index.header;
  std::vector<std::vector<int64_t>> all(static_cast<size_t>(index.row_blocks));
  for (size_t rb = 0; rb < all.size(); ++rb) all[rb] = starts(flat, count, h, static_cast<int64_t>(rb));
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t rb = 0; rb < index.row_blocks; ++rb) {
    const std::vector<int64_t>& row_starts = all[static_cast<size_t>(rb)];
    std::vector<int64_t> next(row_starts);
    rows_of(index, rb, [&](int row, int64_t value, int n, int64_t cb) {
      int64_t at = next[static_cast<size_t>(row)];
      const int64_t end = row_starts[static_cast<size_t>(row) + 1];
      const int64_t start = (rb * h.row_block + row) * h.columns + cb * h.column_block;
      for (int64_t i = value; at < end && i < value + n; ++i) {
        const int64_t position = start + index.columns[i];
        while (at < end && flat[at] < position) ++at;
        if (at < end && flat[at] == position) flat[at++] = -1;
      }
      next[static_cast<size_t>(row)] = at;
    });
  }
  return std::remove(flat, flat + count, int64_t{-1}) - flat;
}

// The row of a stored value; the columns and places of all values of that row, ascending by column; returns how many.
// `columns` and `places` have room for as many as the matrix has columns.
GOSSAMER_EXPORT int64_t gossamer_row_of(const uint8_t* bytes, int64_t place, int64_t* row, int64_t* columns,
                                        int64_t* places) {
  const Index index = read_index(bytes);
  const Header& h = *index.header;
  int64_t rb = 0, wanted = 0, found = 0;
  while (index.blocks[(rb + 1) * index.column_blocks].first <= place) ++rb;
  rows_of(index, rb, [&](int r, int64_t value, int n, int64_t) {
    if (value <= place && place < value + n) wanted = r;
  });
  rows_of(index, rb, [&](int r, int64_t value, int n, int64_t cb) {
    for (int i = 0; r == wanted && i < n; ++i, ++found) {
      columns[found] = cb * h.column_block + index.columns[value + i], places[found] = value + i;
    }
  });
  *row = rb * h.row_block + wanted;
  return found;
}
