// CUDA kernels on plain device pointers, enqueued on the stream given. No torch header. Each returns nullptr, or why the
// launch failed.

#pragma once

#include <cstdint>

namespace torchcoinfer::cuda {

enum class Element { float32, float16, bfloat16 };

// One matrix in the dense format (layout.h).
struct DenseMatrix {
  const uint8_t* packed;  // [NB, KT, 64 * bits]
  const void* scales;     // [NB, G, 16] of scale_type
  const uint8_t* zeros;   // [NB, G, 16]; nullptr: symmetric
  Element scale_type;
  int bits;
  int64_t group_size;  // 0: the whole row
  int64_t N;
  int64_t K;
  int layout;  // of packed: 0 canonical, 1 device order (layout_device.h)
};

// One matrix in a sparse format (layout_sparse.h). 2:4 (`paired`): index; bitmap: masks and offsets, the others nullptr.
struct SparseMatrix {
  bool paired;
  const uint8_t* index;    // [NB, KT, 64]
  const uint64_t* masks;   // [NB, KT, 8]
  const int32_t* offsets;  // [NB + 1]
  const void* values;      // bits 0: floats of value_type, else codes in chunks
  int64_t chunks;          // in values
  Element value_type;
  int bits;              // 0: float survivors
  const void* scales;    // [NB, G, 16] of scale_type; nullptr for float survivors
  const uint8_t* zeros;  // [NB, G, 16]; nullptr: symmetric
  Element scale_type;
  int64_t group_size;  // 0: the whole row
  int64_t N;
  int64_t K;
  int layout;  // of index and values in 2:4: 0 canonical, 1 device order
};

// --- packing: *flag (device memory, int32) becomes 1 where the argument is refused

// codes: uint8 [N, K]; packed: [NB, KT, 64 * bits]. Flag: a code is 2^bits or more.
const char* pack_codes(const uint8_t* codes, int bits, int64_t N, int64_t K, uint8_t* packed, int32_t* flag,
                       void* stream);
const char* unpack_codes(const uint8_t* packed, int bits, int64_t N, int64_t K, uint8_t* codes, void* stream);

// weight: [N, K] of type; packed, scales and zeros (nullptr: symmetric) as in DenseMatrix, written whole; the rule is
// quantize_blocks' of cpu/pack.h, bit for bit. Flag: NaN, Inf, or a scale that overflows scale_type.
const char* quantize_pack(const void* weight, Element type, int bits, int64_t group_size, int64_t N, int64_t K,
                          uint8_t* packed, void* scales, uint8_t* zeros, Element scale_type, int32_t* flag,
                          void* stream);

// values: [N, K] of value_bytes each (codes: 1, bits > 0), kept: one byte each. index, out: written whole. Flag: more
// than 2 of 4 kept, or a kept code of 2^bits or more.
const char* sparse24_pack(const void* values, int64_t value_bytes, const uint8_t* kept, int bits, int64_t N, int64_t K,
                          uint8_t* index, void* out, int32_t* flag, void* stream);
// masks: [NB, KT, 8]; counts: [NB], survivors of each block
const char* bitmap_masks(const uint8_t* kept, int64_t N, int64_t K, uint64_t* masks, int64_t* counts, void* stream);
const char* bitmap_pack(const void* values, int64_t value_bytes, int bits, int64_t N, int64_t K, const uint64_t* masks,
                        const int32_t* offsets, int64_t chunks, void* out, int32_t* flag, void* stream);
// dense: [N, K] of value_bytes each, kept: [N, K], both written whole. Flag: masks and survivors disagree in number.
const char* sparse_unpack(const SparseMatrix& matrix, int64_t value_bytes, void* dense, uint8_t* kept, int32_t* flag,
                          void* stream);

// In place, from the canonical order to the device order or back.
enum class Buffer { codes, survivors, index };
// element_bytes: of float survivors (bits 0), otherwise ignored
const char* reorder(uint8_t* buffer, Buffer kind, int bits, int64_t element_bytes, int64_t blocks, int64_t tiles,
                    bool to_device, void* stream);

// Copies to and from the host; waits for the stream.
const char* read_memory(void* host, const void* device, int64_t bytes, void* stream);
const char* write_memory(void* device, const void* host, int64_t bytes, void* stream);

// --- weights

// out: [N, K] of type
const char* dequantize(const DenseMatrix& w, void* out, Element type, void* stream);

// out: [count, K] of type, row indices[i] of w; rows of NaN where an index is outside [0, N).
const char* embed(const DenseMatrix& w, const void* indices, bool wide_indices, int64_t count, void* out, Element type,
                  void* stream);

// --- linear layers

// values: float [rows, KT * 32] from x [rows, K] of type, zeros beyond K.
const char* float_rows(const void* x, Element type, int64_t rows, int64_t K, float* values, void* stream);

// out [rows, K] of type, contiguous: column k of x in units of scales[k], rounded, within +-127; NaN stays.
const char* static_codes(const void* x, Element type, int64_t rows, int64_t K, const float* scales, void* out,
                         void* stream);

// Every row rounded to symmetric int8 codes: scales [rows] = absmax / 127, NaN where a value is NaN or infinite; codes:
// [rows, columns] of code_type, which holds them exactly, zeros beyond K.
const char* code_rows(const void* x, Element type, int64_t rows, int64_t K, int64_t columns, void* codes,
                      Element code_type, float* scales, void* stream);

// y [rows, N] of type = (values W^T) * row_scales + bias. row_scales [rows] and bias [N] may be nullptr.
const char* quant_linear(const DenseMatrix& w, const float* values, int64_t rows, const float* row_scales,
                         const float* bias, void* y, Element type, void* stream);
const char* sparse_linear(const SparseMatrix& w, const float* values, int64_t rows, const float* row_scales,
                          const float* bias, void* y, Element type, void* stream);

// out: [N, K] of type, zeros where pruned; any format, order and type.
const char* sparse_dequantize(const SparseMatrix& w, void* out, Element type, void* stream);

// --- fast linear layers: the device order only; w.packed and x begin at multiples of 16 bytes; x is [rows, x_columns] of
// 16 bits, x_columns a multiple of 8, zeros beyond K. type: of x and y. scratch: as many floats as *_scratch says.

// out: [rows, columns] of type, zeros beyond K: x as the fast kernels read it, where it is not so already.
const char* pad_rows(const void* x, Element type, int64_t rows, int64_t K, int64_t columns, void* out, void* stream);

// out: [N, columns] of type, columns a multiple of 8, zeros beyond K: the values of `dequantize`.
const char* decode_weight(const DenseMatrix& w, Element type, int64_t columns, void* out, void* stream);

constexpr int64_t GEMV_ROWS = 16;  // most
int64_t gemv_scratch(const DenseMatrix& w, int64_t rows);
const char* gemv_linear(const DenseMatrix& w, const void* x, Element type, int64_t x_columns, int64_t rows,
                        const float* bias, void* y, float* scratch, void* stream);

int64_t gemm_scratch(const DenseMatrix& w, int64_t rows);
const char* gemm_linear(const DenseMatrix& w, const void* x, Element type, int64_t x_columns, int64_t rows,
                        const float* bias, void* y, float* scratch, void* stream);

// The same by wgmma, for many rows; x may begin anywhere. The weight is rounded to x's dtype. `serves`: the device is
// Hopper and the machine code made for it is there.
bool hopper_serves();
int64_t hopper_scratch(const DenseMatrix& w, int64_t rows);
const char* hopper_linear(const DenseMatrix& w, const void* x, Element type, int64_t x_columns, int64_t rows,
                          const float* bias, void* y, float* scratch, void* stream);

// Rows of x [rows, K] rounded to int8 codes as `code_rows` rounds them. codes: [rows, columns], columns = K rounded up to
// 128, each 8 in the order of byte_place(bits, i); sums: int32 [columns / span, sum_rows] of each `span` columns of the
// codes; span: 32, 64 or 128; sum_rows at least rows.
const char* byte_rows(const void* x, Element type, int64_t rows, int64_t K, int bits, int span, int64_t sum_rows,
                      int8_t* codes, int32_t* sums, float* scales, void* stream);

// y of type from what byte_rows gives with span = the group size, at most 128 (0: 128), and sum_rows a multiple of
// BYTE_SUM_ROWS.
constexpr int64_t BYTE_SUM_ROWS = 128;
int64_t byte_scratch(const DenseMatrix& w, int64_t rows);
const char* byte_linear(const DenseMatrix& w, const int8_t* codes, const int32_t* sums, int64_t sum_rows,
                        const float* row_scales, int64_t rows, const float* bias, void* y, Element type, float* scratch,
                        void* stream);

// Fast 2:4 by mma.sp, x as above. `serves`: whether matrix, type and device suit it. row_scales: nullptr, or [rows] of x
// in int8 codes, whose sums over a group of codes of the weight are then exact; up to SPARSE24_CODE_ROWS rows.
constexpr int SPARSE24_CODE_ROWS = 16;
bool sparse24_serves(const SparseMatrix& w, Element type, int64_t rows);
int64_t sparse24_scratch(const SparseMatrix& w, int64_t rows);
const char* fast_sparse24(const SparseMatrix& w, const void* x, int64_t x_columns, int64_t rows, const float* row_scales,
                          const float* bias, void* y, Element type, float* scratch, void* stream);

// The same for bitmap, without scratch, meant for few rows, y times row_scales [rows] or nullptr; and where it serves,
// the weight, out: [N, K] of type.
bool bitmap_serves(const SparseMatrix& w, Element type);
const char* fast_bitmap(const SparseMatrix& w, const void* x, int64_t x_columns, int64_t rows, const float* row_scales,
                        const float* bias, void* y, Element type, void* stream);
const char* bitmap_dequantize(const SparseMatrix& w, void* out, Element type, void* stream);

// Quantized survivors as dense codes of 8 bits that stand for the same weight with the same scales: out [NB, KT, 512] in
// the device order, the zero point (of 8 bits where w has none) where pruned. `serves`: at the speed of memory; 2:4
// codes are expanded anyway, bitmap codes only then.
bool expand_serves(const SparseMatrix& w);
const char* expand_codes(const SparseMatrix& w, uint8_t* out, void* stream);

struct ConvShape {
  int64_t batch, channels, height, width;  // of x
  int64_t out_channels, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
  int64_t groups;
  int64_t x_strides[4];  // element (b, c, h, w) of x at the sum of index * stride
};

// patches: [images * H' * W', C * kh * kw] of type, of the images from `first` on; groups count as one.
const char* gather_patches(const ConvShape& shape, const void* x, Element type, int64_t first, int64_t images,
                           void* patches, void* stream);

// y [B, O, H', W'] of type. w: [O, (C / groups) * kh * kw]. maxima: nullptr, or float [B * H' * W', groups] of scratch:
// patches are then rounded to int8 codes each. bias [O] may be nullptr.
const char* quant_conv2d(const DenseMatrix& w, const ConvShape& shape, const void* x, float* maxima, const float* bias,
                         void* y, Element type, void* stream);

// --- clip search: cpu/grid.h

struct GridSearch {
  int64_t group_size;         // values a group
  int64_t importance_rows;    // group m is weighed by row m % importance_rows
  int64_t groups;             // M
  int64_t starts;             // S ranges to shrink
  int64_t ratios;             // R shares of a range
  int refinements;            // least-squares steps after the search
  float top;                  // 2^bits - 1
  float unit;                 // scales are stored times this power of two
  Element scale_type;         // as which scales are stored
  const float* values;        // [M, group_size], divided by unit
  const float* importance;    // [importance_rows, group_size]
  const float* start_scales;  // [S, M]
  const float* start_zeros;   // [S, M]
  const float* shares;        // [R]
};

// scales [M] storable, still divided by unit; zeros [M].
const char* search_grid(const GridSearch& search, float* scales, float* zeros, void* stream);

// --- the codec of tensors at the cut: cpu/activation.h, bit for bit

// x as rows (leading dims) of n values (trailing dims); channel of value i: i % channels.
struct CodecShape {
  int64_t rows;
  int64_t n;
  int64_t channels;
  int bits;
  bool by_token;  // scale and low [rows], else [channels]
};

// codes: uint8 [rows, ceil(n * bits / 8)]; scale, low: as shape says; scratch: as many floats as encode_scratch says
int64_t encode_scratch(const CodecShape& shape);
const char* encode(const CodecShape& shape, const void* x, Element type, float* scratch, float* scale, float* low,
                   uint8_t* codes, void* stream);
const char* decode(const CodecShape& shape, const uint8_t* codes, const float* scale, const float* low, void* x,
                   Element type, void* stream);

}  // namespace torchcoinfer::cuda
