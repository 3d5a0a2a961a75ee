// The sparse index: where the values of a (rows x columns) matrix lie, in the order in which the kernels visit them.
//
// The matrix is cut into blocks of row_block x column_block. Blocks follow each other by row block, then column block.
// In a block, rows without values are left out and the others are sorted by their number of values (ties: by row), so
// that the inner loop of a kernel runs a constant number of times over a whole group of rows. In a row: by column.
//
// One buffer of bytes holds it all: Header, Block[], Group[], uint16 rows[], uint16 columns[] (both within their block).
// Its size follows from (rows, columns, count, row_block, column_block) alone, so that it stays while values move.
#pragma once
#include <cstdint>

namespace gossamer {

constexpr std::uint64_t MAGIC = 0x31305844494d5347;  // "GSMIDX01" as little-endian bytes
constexpr std::int64_t LARGEST_BLOCK = 32768;        // counts and positions within a block fit 16 bits

struct Header {
  std::uint64_t magic;
  std::int64_t rows, columns, count;
  std::int64_t row_block, column_block;
  std::int64_t groups, segments;  // in use; the room behind them is zero
  std::int64_t groups_at, rows_at, columns_at, bytes;
};

struct Block {
  std::int64_t first;           // number of its first value
  std::int32_t group, segment;  // numbers of its first group and of its first row
};

struct Group {
  std::uint16_t values, rows;  // values per row; rows in this group
};

static inline std::int64_t pieces(std::int64_t size, std::int64_t block) { return (size + block - 1) / block; }
static inline std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

struct Index {
  const Header* header;
  const Block* blocks;  // one more than there are: the end
  const Group* groups;
  const std::uint16_t* rows;
  const std::uint16_t* columns;
  std::int64_t row_blocks, column_blocks;
};

static inline Index read_index(const std::uint8_t* bytes) {
  const Header* header = reinterpret_cast<const Header*>(bytes);
  return {header,
          reinterpret_cast<const Block*>(bytes + sizeof(Header)),
          reinterpret_cast<const Group*>(bytes + header->groups_at),
          reinterpret_cast<const std::uint16_t*>(bytes + header->rows_at),
          reinterpret_cast<const std::uint16_t*>(bytes + header->columns_at),
          pieces(header->rows, header->row_block),
          pieces(header->columns, header->column_block)};
}

namespace {

// visit(row in its block, number of its first value, number of values, first column) for the rows of one row block.
template <class Visit>
void rows_of(const Index& index, std::int64_t row_block, Visit visit) {
  for (std::int64_t cb = 0; cb < index.column_blocks; ++cb) {
    const Block* block = index.blocks + row_block * index.column_blocks + cb;
    std::int64_t value = block->first;
    const std::uint16_t* row = index.rows + block->segment;
    for (const Group *g = index.groups + block[0].group, *end = index.groups + block[1].group; g < end; ++g) {
      for (int r = 0; r < g->rows; ++r, ++row, value += g->values) visit(*row, value, g->values, cb);
    }
  }
}

}  // namespace
}  // namespace gossamer
