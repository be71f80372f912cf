// The codec of tensors at the cut: the bits of cpu/activation.cpp. Products and sums are rounded one after the other
// (__fmul_rn, __fadd_rn are never fused): both halves must see the same.
//
// A thread takes eight neighboring values: 16 bytes of x, and exactly `bits` bytes of codes. Thread blocks go by rows
// and parts of rows. A range of one part is found by the block that then encodes it: x comes once from memory, once
// from L2. Ranges of more parts, and of channels, are found by a kernel before, as partial extremes:
//
//   token, a part a row      | encode                   token, few long rows   | token_ranges | encode
//   channel                  | channel_ranges | close_channels | encode

#include "cuda/fragments.cuh"

namespace torchcoinfer::cuda {
namespace {

constexpr int THREADS = 256;     // of a thread block at most
constexpr int EIGHT = 8;         // values of a thread
constexpr int TEAM = 4;          // lanes whose codes are whole words
constexpr int64_t LEAST_PART = THREADS * EIGHT * 2;  // values; a multiple of TEAM * EIGHT: parts begin at a word
constexpr int64_t MOST_PARTS = 256;
constexpr float INTEGERS = 8388608.f;  // 2^23: adding it rounds to the nearest even integer, in the low bits

// Least and largest of what was seen; comparisons drop NaN, so it is looked for by itself.
struct Extremes {
  float low = INFINITY, high = -INFINITY;
  bool nan = false;

  __device__ __forceinline__ void add(float value) {
    add(value, value);
  }
  __device__ __forceinline__ void add(float least, float largest) {
    low = least < low ? least : low;
    high = largest > high ? largest : high;
    nan = nan || least != least;
  }
  // Over the threads of the block; scratch: shared, a float a warp.
  __device__ void join(float* scratch) {
    low = -block_maximum(-low, scratch);
    high = block_maximum(high, scratch);
    nan = __syncthreads_or(nan);
  }
  __device__ float2 partial() const {
    return nan ? make_float2(__int_as_float(0x7fc00000), high) : make_float2(low, high);
  }
};

// Step and least value, as both halves see them.
struct Range {
  float scale, low;

  __device__ static Range of(const Extremes& seen, int bits) {
    const float top = static_cast<float>((1 << bits) - 1), quiet = __int_as_float(0x7fc00000);
    if (seen.nan) return {quiet, quiet};
    return {__fdiv_rn(__fsub_rn(seen.high, seen.low), top), seen.low};
  }
};

// How the kernels cut rows of n values, and whether x and codes are accessed in vectors and words.
struct Cut {
  int64_t part;  // values
  int64_t parts;
  bool whole;
};

template <typename T>
__device__ __forceinline__ void load_eight(float (&values)[EIGHT], const T* from, int64_t count, bool whole) {
  if (whole) {
    if constexpr (std::is_same_v<T, float>) {
      const float4 first = __ldg(reinterpret_cast<const float4*>(from));
      const float4 second = __ldg(reinterpret_cast<const float4*>(from) + 1);
      values[0] = first.x, values[1] = first.y, values[2] = first.z, values[3] = first.w;
      values[4] = second.x, values[5] = second.y, values[6] = second.z, values[7] = second.w;
    } else {
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(from));
      const uint32_t pairs[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 two = floats_of<T>(pairs[j]);
        values[2 * j] = two.x, values[2 * j + 1] = two.y;
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < EIGHT; ++i) values[i] = i < count ? static_cast<float>(from[i]) : 0.f;
}

template <typename T>
__device__ __forceinline__ void store_eight(T* to, const float (&values)[EIGHT], int64_t count, bool whole) {
  if (!whole) {
#pragma unroll
    for (int i = 0; i < EIGHT; ++i)
      if (i < count) to[i] = T(values[i]);
  } else if constexpr (std::is_same_v<T, float>) {
    reinterpret_cast<float4*>(to)[0] = make_float4(values[0], values[1], values[2], values[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(values[4], values[5], values[6], values[7]);
  } else {
    *reinterpret_cast<uint4*>(to) = make_uint4(pair_of<T>(values[0], values[1]), pair_of<T>(values[2], values[3]),
                                               pair_of<T>(values[4], values[5]), pair_of<T>(values[6], values[7]));
  }
}

// Values [begin, end) of a row.
template <typename T>
__device__ __forceinline__ void see(Extremes& seen, const T* row, int64_t begin, int64_t end, bool whole) {
  for (int64_t i = begin + EIGHT * threadIdx.x; i < end; i += EIGHT * blockDim.x) {
    float values[EIGHT];
    load_eight(values, row + i, end - i, whole);
#pragma unroll
    for (int j = 0; j < EIGHT; ++j)
      if (whole || i + j < end) seen.add(values[j]);
  }
}

// Ranges of eight values from i on: one of the row, or each its channel's.
struct RowRange {
  Range range;

  __device__ __forceinline__ void load(Range (&ranges)[EIGHT], int64_t) const {
#pragma unroll
    for (int j = 0; j < EIGHT; ++j) ranges[j] = range;
  }
};

struct ChannelRanges {
  const float *scale, *low;
  int64_t channels;

  __device__ __forceinline__ void load(Range (&ranges)[EIGHT], int64_t i) const {
    int64_t channel = i % channels;
#pragma unroll
    for (int j = 0; j < EIGHT; ++j) {
      ranges[j] = {__ldg(scale + channel), __ldg(low + channel)};
      channel = channel + 1 == channels ? 0 : channel + 1;
    }
  }
};

// Eight codes, the first in the lowest bits.
__device__ __forceinline__ uint64_t code_word(const float (&values)[EIGHT], const Range (&ranges)[EIGHT], int bits) {
  const float top = static_cast<float>((1 << bits) - 1);
  uint32_t fours[2] = {0, 0};
#pragma unroll
  for (int j = 0; j < EIGHT; ++j) {
    const float code = __fdiv_rn(__fsub_rn(values[j], ranges[j].low), ranges[j].scale);
    const float clipped = fminf(fmaxf(code, 0.f), top);  // NaN, where the scale is 0 or NaN, becomes code 0
    fours[j / 4] |= (__float_as_uint(__fadd_rn(clipped, INTEGERS)) & 255u) << bits * (j % 4);
  }
  return fours[0] | static_cast<uint64_t>(fours[1]) << 4 * bits;
}

// Word `j` of the codes of a team of lanes, whose `word`s are its bits one after another; all lanes call.
__device__ __forceinline__ uint32_t team_word(uint64_t word, int bits, int j) {
  const int from = 4 * j / bits < TEAM ? 4 * j / bits : TEAM - 1, next = from + 1 < TEAM ? from + 1 : from;
  const int lane = threadIdx.x % WARP / TEAM * TEAM, skipped = 32 * j - EIGHT * bits * from;
  const auto low = static_cast<uint32_t>(word), high = static_cast<uint32_t>(word >> 32);
  const uint64_t first = __shfl_sync(ALL_LANES, low, lane + from) |
                         static_cast<uint64_t>(__shfl_sync(ALL_LANES, high, lane + from)) << 32;
  const uint32_t second = __shfl_sync(ALL_LANES, low, lane + next);
  const int left = EIGHT * bits - skipped;
  return static_cast<uint32_t>(first >> (skipped & 63)) | (left < 32 ? second << (left & 31) : 0);
}

// Codes of values i .. i + 7, those from `end` on left out; all lanes call, in order of i, the first lane at a multiple
// of 256.
__device__ __forceinline__ void store_codes(uint64_t word, const CodecShape& shape, bool whole, int64_t i,
                                            int64_t end, uint8_t* row) {
  const int bits = shape.bits;
  uint8_t* to = row + i / EIGHT * bits;
  if (whole && bits == 8) {
    if (i < end) *reinterpret_cast<uint2*>(to) = make_uint2(static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32));
  } else if (whole && bits == 4) {
    if (i < end) *reinterpret_cast<uint32_t*>(to) = static_cast<uint32_t>(word);
  } else if (whole) {
    auto* words = reinterpret_cast<uint32_t*>(row);
    const int64_t first = i / (TEAM * EIGHT) * bits, last = end * bits / 32;
    for (int j = threadIdx.x % TEAM; j < 2 * TEAM && j - static_cast<int>(threadIdx.x % TEAM) < bits; j += TEAM) {
      const uint32_t value = team_word(word, bits, j);
      if (j < bits && first + j < last) words[first + j] = value;
    }
  } else {
    const int64_t bytes = i < end ? ceil_div((end - i) * bits, 8) : 0;
    for (int k = 0; k < bits && k < bytes; ++k) to[k] = static_cast<uint8_t>(word >> 8 * k);
  }
}

// Values [begin, end) of a row; begin is a multiple of LEAST_PART.
template <typename T, typename Ranges>
__device__ __forceinline__ void encode_part(const CodecShape& shape, const Ranges& ranges, const T* row, int64_t begin,
                                            int64_t end, bool whole, uint8_t* codes) {
  for (int64_t base = begin; base < end; base += EIGHT * blockDim.x) {
    const int64_t i = base + EIGHT * threadIdx.x;
    uint64_t word = 0;
    if (i < end) {
      float values[EIGHT];
      Range of_values[EIGHT];
      load_eight(values, row + i, end - i, whole);
      ranges.load(of_values, i);
      word = code_word(values, of_values, shape.bits);
      if (end - i < EIGHT) word &= (uint64_t{1} << (end - i) * shape.bits) - 1;
    }
    store_codes(word, shape, whole, i, end, codes);
  }
}

template <typename T>
__global__ void __launch_bounds__(THREADS) token_ranges(CodecShape shape, const T* x, Cut cut, float2* partials) {
  __shared__ float scratch[THREADS / WARP];
  const int64_t row = blockIdx.x, begin = blockIdx.y * cut.part;
  Extremes seen;
  see(seen, x + row * shape.n, begin, min(begin + cut.part, shape.n), cut.whole);
  seen.join(scratch);
  if (threadIdx.x == 0) partials[row * cut.parts + blockIdx.y] = seen.partial();
}

// partials: nullptr where a row is one part.
template <typename T>
__global__ void __launch_bounds__(THREADS)
    encode_tokens(CodecShape shape, const T* x, Cut cut, const float2* partials, float* scale, float* low,
                  uint8_t* codes) {
  __shared__ float scratch[THREADS / WARP];
  const int64_t row = blockIdx.x, begin = blockIdx.y * cut.part, row_bytes = ceil_div(shape.n * shape.bits, 8);
  Extremes seen;
  if (partials) {
    for (int64_t i = threadIdx.x; i < cut.parts; i += blockDim.x) {
      const float2 part = partials[row * cut.parts + i];
      seen.add(part.x, part.y);
    }
  } else {
    see(seen, x + row * shape.n, 0, shape.n, cut.whole);
  }
  seen.join(scratch);
  const Range range = shape.n ? Range::of(seen, shape.bits) : Range{0.f, 0.f};
  if (threadIdx.x == 0 && blockIdx.y == 0) scale[row] = range.scale, low[row] = range.low;
  encode_part(shape, RowRange{range}, x + row * shape.n, begin, min(begin + cut.part, shape.n), cut.whole,
              codes + row * row_bytes);
}

constexpr int LINES = THREADS / WARP;  // of x that a block sees at once, by channels

// x as lines of all channels; a lane sees VALUES channels. partials: [gridDim.y, channels].
template <typename T, int VALUES>
__global__ void __launch_bounds__(THREADS)
    channel_ranges(const T* x, int64_t lines, int64_t channels, int64_t part, float2* partials) {
  __shared__ float2 of_lines[LINES][WARP * VALUES];
  const int lane = threadIdx.x % WARP, line = threadIdx.x / WARP;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (WARP * VALUES) + lane * VALUES;
  const int64_t begin = blockIdx.y * part, end = min(begin + part, lines);
  Extremes seen[VALUES];
  for (int64_t at = begin + line; at < end && first < channels; at += LINES) {
    if constexpr (VALUES == EIGHT) {
      float values[EIGHT];
      load_eight(values, x + at * channels + first, EIGHT, true);
#pragma unroll
      for (int j = 0; j < EIGHT; ++j) seen[j].add(values[j]);
    } else {
      seen[0].add(static_cast<float>(x[at * channels + first]));
    }
  }
#pragma unroll
  for (int j = 0; j < VALUES; ++j) of_lines[line][j * WARP + lane] = seen[j].partial();
  __syncthreads();
  for (int i = threadIdx.x; i < WARP * VALUES; i += THREADS) {
    const int64_t channel = static_cast<int64_t>(blockIdx.x) * (WARP * VALUES) + i % WARP * VALUES + i / WARP;
    Extremes all;
    for (int other = 0; other < LINES; ++other) all.add(of_lines[other][i].x, of_lines[other][i].y);
    if (channel < channels) partials[blockIdx.y * channels + channel] = all.partial();
  }
}

__global__ void __launch_bounds__(THREADS)
    close_channels(CodecShape shape, const float2* partials, int64_t parts, float* scale, float* low) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x;
  if (channel >= shape.channels) return;
  Extremes seen;
  for (int64_t part = 0; part < parts; ++part) {
    const float2 one = partials[part * shape.channels + channel];
    seen.add(one.x, one.y);
  }
  const Range range = parts ? Range::of(seen, shape.bits) : Range{0.f, 0.f};
  scale[channel] = range.scale, low[channel] = range.low;
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    encode_channels(CodecShape shape, const T* x, Cut cut, const float* scale, const float* low, uint8_t* codes) {
  const int64_t row = blockIdx.x, begin = blockIdx.y * cut.part, row_bytes = ceil_div(shape.n * shape.bits, 8);
  encode_part(shape, ChannelRanges{scale, low, shape.channels}, x + row * shape.n, begin,
              min(begin + cut.part, shape.n), cut.whole, codes + row * row_bytes);
}

// The eight codes from value i on.
__device__ __forceinline__ uint64_t load_codes(const CodecShape& shape, bool whole, int64_t i, const uint8_t* row,
                                               int64_t row_bytes) {
  const int64_t byte = i / EIGHT * shape.bits;
  uint64_t word = 0;
  if (whole) {  // aligned words around the bytes
    const auto* words = reinterpret_cast<const uint32_t*>(row);
    const int64_t first = byte / 4, last = row_bytes / 4;
    const int skipped = static_cast<int>(byte % 4) * 8;
    uint32_t three[3];
#pragma unroll
    for (int k = 0; k < 3; ++k) three[k] = first + k < last ? __ldg(words + first + k) : 0;
    return __funnelshift_r(three[0], three[1], skipped) |
           static_cast<uint64_t>(__funnelshift_r(three[1], three[2], skipped)) << 32;
  }
  for (int k = 0; k < shape.bits && byte + k < row_bytes; ++k) word |= static_cast<uint64_t>(row[byte + k]) << 8 * k;
  return word;
}

template <typename T, typename Ranges>
__device__ __forceinline__ void decode_part(const CodecShape& shape, const Cut& cut, const Ranges& ranges,
                                            const uint8_t* codes, T* x) {
  const int64_t row = blockIdx.x, begin = blockIdx.y * cut.part, end = min(begin + cut.part, shape.n);
  const int64_t row_bytes = ceil_div(shape.n * shape.bits, 8);
  const uint32_t mask = (1u << shape.bits) - 1u;
  for (int64_t i = begin + EIGHT * threadIdx.x; i < end; i += EIGHT * blockDim.x) {
    const uint64_t word = load_codes(shape, cut.whole, i, codes + row * row_bytes, row_bytes);
    const uint32_t fours[2] = {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 4 * shape.bits)};
    Range of_values[EIGHT];
    float values[EIGHT];
    ranges.load(of_values, i);
#pragma unroll
    for (int j = 0; j < EIGHT; ++j) {
      const auto code = static_cast<float>(fours[j / 4] >> shape.bits * (j % 4) & mask);
      values[j] = __fadd_rn(__fmul_rn(of_values[j].scale, code), of_values[j].low);
    }
    store_eight(x + row * shape.n + i, values, end - i, cut.whole);
  }
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
    decode_rows(CodecShape shape, const uint8_t* codes, Cut cut, const float* scale, const float* low, T* x) {
  if (shape.by_token)
    decode_part(shape, cut, RowRange{{scale[blockIdx.x], low[blockIdx.x]}}, codes, x);
  else
    decode_part(shape, cut, ChannelRanges{scale, low, shape.channels}, codes, x);
}

// --- host

bool is_aligned(const void* place) {
  return reinterpret_cast<uintptr_t>(place) % LANE_BYTES == 0;
}

// Parts of a row: one where the rows fill the device.
Cut cut_of(const CodecShape& shape) {
  const int64_t wanted = shape.rows ? 4 * processor_count() / shape.rows : 1, most = shape.n / LEAST_PART;
  const int64_t parts = split_count(1, most, 1, wanted < MOST_PARTS ? wanted : MOST_PARTS);
  const int64_t part = ceil_div(ceil_div(shape.n, parts), LEAST_PART) * LEAST_PART;
  return {part, part ? ceil_div(shape.n, part) : 1, false};
}

// Threads for a part: whole warps.
unsigned threads_of(const CodecShape& shape, const Cut& cut) {
  const int64_t values = cut.part < shape.n ? cut.part : shape.n;
  return grid_size(ceil_div(ceil_div(values, EIGHT), WARP) * WARP + (values ? 0 : WARP), THREADS);
}

bool in_words(const CodecShape& shape, const void* x, const void* codes) {
  return shape.n % EIGHT == 0 && shape.n / EIGHT * shape.bits % 4 == 0 && is_aligned(x) && is_aligned(codes);
}

struct ChannelCut {
  int64_t lines, part, parts;
};

ChannelCut channel_cut(const CodecShape& shape) {
  const int64_t lines = shape.channels ? shape.rows * shape.n / shape.channels : 0;
  const int64_t across = ceil_div(shape.channels, WARP * EIGHT), wanted = across ? 4 * processor_count() / across : 1;
  const int64_t parts = split_count(1, lines / LINES, 1, wanted < MOST_PARTS ? wanted : MOST_PARTS);
  const int64_t part = ceil_div(lines, parts);
  return {lines, part, part ? ceil_div(lines, part) : 0};
}

template <typename T>
void encode_by_token(const CodecShape& shape, const T* x, const Cut& cut, float2* partials, float* scale, float* low,
                     uint8_t* codes, void* stream) {
  const dim3 grid(static_cast<unsigned>(shape.rows), static_cast<unsigned>(cut.parts));
  const unsigned threads = threads_of(shape, cut);
  if (cut.parts > 1) launch(token_ranges<T>, grid, threads, 0, stream, shape, x, cut, partials);
  launch(encode_tokens<T>, grid, threads, 0, stream, shape, x, cut, cut.parts > 1 ? partials : nullptr, scale, low,
         codes);
}

template <typename T>
void encode_by_channel(const CodecShape& shape, const T* x, const Cut& cut, float2* partials, float* scale, float* low,
                       uint8_t* codes, void* stream) {
  const ChannelCut by_lines = channel_cut(shape);
  if (by_lines.parts) {
    const bool eights = shape.channels % EIGHT == 0 && is_aligned(x);
    const dim3 grid(static_cast<unsigned>(ceil_div(shape.channels, WARP * (eights ? EIGHT : 1))),
                    static_cast<unsigned>(by_lines.parts));
    launch(eights ? channel_ranges<T, EIGHT> : channel_ranges<T, 1>, grid, THREADS, 0, stream, x, by_lines.lines,
           shape.channels, by_lines.part, partials);
  }
  launch(close_channels, static_cast<unsigned>(ceil_div(shape.channels, THREADS)), THREADS, 0, stream, shape, partials,
         by_lines.parts, scale, low);
  const dim3 grid(static_cast<unsigned>(shape.rows), static_cast<unsigned>(cut.parts));
  if (shape.rows * shape.n != 0)
    launch(encode_channels<T>, grid, threads_of(shape, cut), 0, stream, shape, x, cut, scale, low, codes);
}

template <typename T>
void encode_typed(const CodecShape& shape, const void* x, float2* partials, float* scale, float* low, uint8_t* codes,
                  void* stream) {
  Cut cut = cut_of(shape);
  cut.whole = in_words(shape, x, codes);
  const auto* values = static_cast<const T*>(x);
  if (!shape.by_token && shape.channels)
    encode_by_channel(shape, values, cut, partials, scale, low, codes, stream);
  else if (shape.by_token && shape.rows)
    encode_by_token(shape, values, cut, partials, scale, low, codes, stream);
}

template <typename T>
void decode_typed(const CodecShape& shape, const uint8_t* codes, const float* scale, const float* low, void* x,
                  void* stream) {
  Cut cut = cut_of(shape);
  cut.whole = in_words(shape, x, codes);
  const dim3 grid(static_cast<unsigned>(shape.rows), static_cast<unsigned>(cut.parts));
  launch(decode_rows<T>, grid, threads_of(shape, cut), 0, stream, shape, codes, cut, scale, low, static_cast<T*>(x));
}

}  // namespace

int64_t encode_scratch(const CodecShape& shape) {
  if (!shape.by_token) return 2 * shape.channels * channel_cut(shape).parts;
  const Cut cut = cut_of(shape);
  return cut.parts > 1 ? 2 * shape.rows * cut.parts : 0;
}

const char* encode(const CodecShape& shape, const void* x, Element type, float* scratch, float* scale, float* low,
                   uint8_t* codes, void* stream) {
  auto* partials = reinterpret_cast<float2*>(scratch);
  const auto encode_as = type == Element::float32   ? encode_typed<float>
                         : type == Element::float16 ? encode_typed<__half>
                                                    : encode_typed<__nv_bfloat16>;
  encode_as(shape, x, partials, scale, low, codes, stream);
  return launch_error();
}

const char* decode(const CodecShape& shape, const uint8_t* codes, const float* scale, const float* low, void* x,
                   Element type, void* stream) {
  if (shape.rows * shape.n == 0) return nullptr;
  const auto decode_as = type == Element::float32   ? decode_typed<float>
                         : type == Element::float16 ? decode_typed<__half>
                                                    : decode_typed<__nv_bfloat16>;
  decode_as(shape, codes, scale, low, x, stream);
  return launch_error();
}

}  // namespace torchcoinfer::cuda
