// Rows of a packed table, decoded straight from their blocks. No torch header.

#pragma once

#include "cpu/pack.h"

namespace torchcoinfer {

// out[i] = row indices[i] of the table, [.., K] of dtype, for i in [begin, end); indices are in range.
template <typename Index>
void embed_rows(const QuantMatrix& table, const Index* indices, void* out, Dtype dtype, int64_t begin, int64_t end);

}  // namespace torchcoinfer
