// Where the blocks of a matrix lie, by rows and by columns, read off their positions.
#include <vector>

#include "index.h"
#include "kernels.h"

namespace gossamer {

// starts, order: room for row blocks + column blocks + 2, and for `count`. False: positions do not ascend within range.
bool arrange_blocks(Blocks* all, std::int64_t count, std::int32_t* starts, std::int32_t* order) {
  all->row_blocks = pieces(all->rows, all->side), all->column_blocks = pieces(all->columns, all->side);
  const std::int64_t room = all->row_blocks * all->column_blocks;
  std::int32_t *rows = starts, *columns = starts + all->row_blocks + 1;
  for (std::int64_t i = 0; i < all->row_blocks + all->column_blocks + 2; ++i) starts[i] = 0;
  std::int64_t last = -1;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t position = all->positions[i];
    if (position <= last || position >= room) return false;
    last = position;
    ++rows[position / all->column_blocks + 1], ++columns[position % all->column_blocks + 1];
  }
  for (std::int64_t i = 0; i < all->row_blocks; ++i) rows[i + 1] += rows[i];
  for (std::int64_t i = 0; i < all->column_blocks; ++i) columns[i + 1] += columns[i];
  std::vector<std::int32_t> next(columns, columns + all->column_blocks);
  for (std::int64_t i = 0; i < count; ++i) {
    order[next[static_cast<std::size_t>(all->positions[i] % all->column_blocks)]++] = static_cast<std::int32_t>(i);
  }
  all->row_starts = rows, all->column_starts = columns, all->order = order;
  return true;
}

}  // namespace gossamer
