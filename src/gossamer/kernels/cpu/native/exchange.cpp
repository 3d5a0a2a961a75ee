// An exchange of entries: from the index before it, what is kept of it and what is born, to the index after it. Nothing is
// sorted but the few rows of a block, and no list of all positions leaves this file.
#include "index_build.h"

#define GOSSAMER_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace gossamer;

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

// The positions of one row block after it, ascending, and the places of the values before it, -1 for newborn ones.
void merge_rows(const Change& c, int64_t rb, int64_t first, int64_t* flat, int32_t* place) {
  const Header& h = *c.index.header;
  const std::vector<int64_t> born = starts(c.born, c.born_count, h, rb);
  const size_t rows = born.size() - 1;
  std::vector<int64_t> next(rows + 1, 0), fresh(born);
  rows_of(c.index, rb, [&](int row, int64_t value, int count, int64_t) {
    int64_t kept = 0;
    for (int i = 0; i < count; ++i) kept += c.kept[value + i];
    next[static_cast<size_t>(row) + 1] += kept;
  });
  next[0] = first;
  for (size_t row = 0; row < rows; ++row) next[row + 1] += next[row] + born[row + 1] - born[row];
  auto put = [&](int64_t& to, int64_t position, int32_t from) { flat[to] = position, place[to++] = from; };
  rows_of(c.index, rb, [&](int row, int64_t value, int count, int64_t cb) {
    int64_t to = next[static_cast<size_t>(row)], b = fresh[static_cast<size_t>(row)];
    const int64_t end = born[static_cast<size_t>(row) + 1];
    const int64_t start = (rb * h.row_block + row) * h.columns + cb * h.column_block;
    for (int64_t i = value; i < value + count; ++i) {
      if (!c.kept[i]) continue;
      const int64_t position = start + c.index.columns[i];
      for (; b < end && c.born[b] < position; ++b) put(to, c.born[b], -1);
      put(to, position, static_cast<int32_t>(i));
    }
    next[static_cast<size_t>(row)] = to, fresh[static_cast<size_t>(row)] = b;
  });
  for (size_t row = 0; row < rows; ++row) {
    for (int64_t b = fresh[row]; b < born[row + 1]; ++b) put(next[row], c.born[b], -1);
  }
}

}  // namespace

// kept: a byte 0 or 1 for each value of the index `before`. born: ascending positions of inactive entries. Writes an index
// with blocks of the same size to `after`, and for each of its values the place before, or -1.
GOSSAMER_EXPORT void gossamer_exchange(const uint8_t* before, const uint8_t* kept, const int64_t* born,
                                       int64_t born_count, int64_t count, uint8_t* after, int32_t* source, int threads) {
  const Change change{read_index(before), kept, born, born_count};
  const Header& h = *change.index.header;
  start_index(after, layout(h.rows, h.columns, count, h.row_block, h.column_block));
  const Index index = read_index(after);
  std::vector<int64_t> first(static_cast<size_t>(index.row_blocks) + 1, 0);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t rb = 0; rb < index.row_blocks; ++rb) {
    const Block* blocks = change.index.blocks + rb * index.column_blocks;
    const int64_t row = rb * h.row_block, end = smaller(h.rows, row + h.row_block);
    int64_t held = std::lower_bound(born, born + born_count, end * h.columns) -
                   std::lower_bound(born, born + born_count, row * h.columns);
    for (int64_t i = blocks[0].first; i < blocks[index.column_blocks].first; ++i) held += kept[i];
    first[static_cast<size_t>(rb) + 1] = held;
  }
  for (size_t rb = 1; rb < first.size(); ++rb) first[rb] += first[rb - 1];
  std::vector<int64_t> flat(static_cast<size_t>(count));
  std::vector<int32_t> place(static_cast<size_t>(count));
  fill(
      flat.data(), first.data(), index, threads,
      [&](int64_t rb) { merge_rows(change, rb, first[static_cast<size_t>(rb)], flat.data(), place.data()); },
      [&](int64_t value, int64_t i) { source[value] = place[static_cast<size_t>(i)]; });
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
