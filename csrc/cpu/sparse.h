// Sparse formats (layout_sparse.h) on plain pointers: packing, unpacking, linear layers.

#pragma once

#include <cstdint>

#include "cpu/isa.h"
#include "cpu/quant_linear.h"
#include "layout_sparse.h"

namespace torchcoinfer {

// One matrix in a sparse format. 2:4 (`paired`): `index`; bitmap: `masks` and `offsets`; the others are nullptr.
struct SparseMatrix {
  bool paired;
  const uint8_t* index;    // [NB, KT, 64]
  const uint64_t* masks;   // [NB, KT, 8]
  const int32_t* offsets;  // [NB + 1]
  const void* values;      // bits 0: floats of value_dtype, else codes in chunks
  int64_t chunks;          // in values
  Dtype value_dtype;
  int bits;             // 0: float survivors
  const void* scales;   // [NB, G, 16] of scale_dtype; nullptr for float survivors
  const uint8_t* zeros;  // [NB, G, 16]; nullptr: symmetric
  Dtype scale_dtype;
  int64_t group_size;  // 0: the whole row
  int64_t N;
  int64_t K;

  int64_t tiles() const {
    return ceil_div(K, TILE_K);
  }
  int64_t first_chunk(int64_t block) const {
    return paired ? block * tiles() * TILE_CHUNKS : offsets[block];
  }
};

// Packing reads values [N, K] (floats of 4 or 2 bytes, or codes of 1) and kept [N, K], one byte each, over n-blocks
// [begin, end). Outputs must hold 0.

// False: more than 2 of 4 consecutive columns are kept.
bool sparse24_pack_blocks(const void* values, int64_t value_bytes, const uint8_t* kept, int bits, int64_t N, int64_t K,
                          int64_t begin, int64_t end, uint8_t* index, void* out);
// mask: [NB, KT, 8]; counts: [NB], survivors of each block
void bitmap_masks(const uint8_t* kept, int64_t N, int64_t K, int64_t begin, int64_t end, uint64_t* masks,
                  int64_t* counts);
void bitmap_pack_blocks(const void* values, int64_t value_bytes, int bits, int64_t N, int64_t K, const uint64_t* masks,
                        const int32_t* offsets, int64_t begin, int64_t end, void* out);
// dense: [N, K] of value_bytes each, kept: [N, K]. False: the masks of a block and its survivors disagree in number.
bool sparse_unpack_blocks(const SparseMatrix& matrix, int64_t value_bytes, int64_t begin, int64_t end, void* dense,
                          uint8_t* kept);

// y = x W^T + bias; activation_bits 8 for codes alone.
struct SparseCall {
  SparseMatrix weight;
  SourceRows x;
  int64_t rows;
  int activation_bits;
  Output out;
  Isa isa;
  int64_t threads;  // that `parallel` has: x is prepared anew for every part of the blocks
};

// False: the masks of a block and its survivors disagree in number.
bool run_sparse_linear(const SparseCall& call, const ParallelFor& parallel);

}  // namespace torchcoinfer
