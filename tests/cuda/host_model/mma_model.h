// Warp-level matrix instructions on the host, after the fragment layouts of the PTX ISA ("Matrix fragments for
// mma.m16n8k16", "... m16n8k32", "... sparse mma.m16n8k32", "ldmatrix"). With g = lane / 4 and t = lane % 4:
//
//   16-bit A 16x16: register r holds row g + 8 (r % 2), columns 2t + 8 (r / 2) and the next, the first in the low half
//   16-bit B 16x8:  register r holds column g, rows 2t + 8 r and the next
//   8-bit  A 16x32: register r holds row g + 8 (r % 2), columns 4t + 16 (r / 2) and three more, the first lowest
//   8-bit  B 32x8:  register r holds column g, rows 4t + 16 r and three more
//   C, D 16x8:      value i is row g + 8 (i / 2), column 2t + i % 2
//   sparse 16-bit A 16x32: the 16 kept columns as in A 16x16; B 32x8 in four registers as in B 16x8. Metadata: lane
//     4g + SELECTOR * 2 + h has the indices of columns 16h .. 16h + 15, of row g in the low half, of row g + 8 in the
//     high half, two bits each, ascending
//
// Sums are taken in double and rounded to float once: no GPU is more exact.

#pragma once

#include "cuda_bf16.h"
#include "host_model.h"

namespace host_model {

struct Fragments {
  uint32_t a[4], b[4], metadata;
};

inline uint32_t word_of(Brought all, int lane, bool of_b, int index) {
  const Fragments fragments = brought<Fragments>(all, lane);
  return of_b ? fragments.b[index] : fragments.a[index];
}

template <typename T>
double half_of(uint32_t word, int half) {
  return static_cast<float>(host_bits<T>(static_cast<uint16_t>(word >> 16 * half)));
}

template <typename T>
double a16(Brought all, int row, int k) {
  return half_of<T>(word_of(all, row % 8 * 4 + k % 8 / 2, false, row / 8 + k / 8 * 2), k % 2);
}

template <typename T>
double b16(Brought all, int k, int column) {
  return half_of<T>(word_of(all, column * 4 + k % 8 / 2, true, k / 8), k % 2);
}

template <typename T>
int byte_of(uint32_t word, int i) {
  return static_cast<T>(word >> 8 * i & 255);
}

template <typename T>
int a8(Brought all, int row, int k) {
  return byte_of<T>(word_of(all, row % 8 * 4 + k % 16 / 4, false, row / 8 + k / 16 * 2), k % 4);
}

template <typename T>
int b8(Brought all, int k, int column) {
  return byte_of<T>(word_of(all, column * 4 + k % 16 / 4, true, k / 16), k % 4);
}

inline Brought meet_fragments(const uint32_t* a, const uint32_t* b, int b_words, uint32_t metadata) {
  Fragments own{{a[0], a[1], a[2], a[3]}, {}, metadata};
  for (int i = 0; i < b_words; ++i) own.b[i] = b[i];
  return meet_warp(Meeting::multiply, 0xffffffffu, &own, sizeof own);
}

// Value i of the caller's part of D.
template <typename Sum, typename Value, typename Product>
Value cell(int i, Value c, int depth, Product product) {
  const int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
  Sum sum = static_cast<Sum>(c);
  for (int k = 0; k < depth; ++k) sum += product(row, column, k);
  return static_cast<Value>(sum);
}

template <typename T>
void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Brought all = meet_fragments(a, b, 2, 0);
  for (int i = 0; i < 4; ++i)
    d[i] = cell<double>(i, d[i], 16, [&](int row, int column, int k) {
      return a16<T>(all, row, k) * b16<T>(all, k, column);
    });
}

template <typename A, typename B>
void mma_16832(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Brought all = meet_fragments(a, b, 2, 0);
  for (int i = 0; i < 4; ++i)
    d[i] = cell<int64_t>(i, d[i], 32, [&](int row, int column, int k) {
      return static_cast<int64_t>(a8<A>(all, row, k)) * b8<B>(all, k, column);
    });
}

template <typename T, int SELECTOR>
void mma_sp_16832(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata) {
  static_assert(SELECTOR == 0 || SELECTOR == 1, "two lanes of four give the metadata");
  const Brought all = meet_fragments(a, b, 4, metadata);
  for (int i = 0; i < 4; ++i)
    d[i] = cell<double>(i, d[i], 16, [&](int row, int column, int k) {
      const int group = k / 2;  // of four columns
      const Fragments from = brought<Fragments>(all, row % 8 * 4 + SELECTOR * 2 + group / 4);
      const uint32_t pair = from.metadata >> (16 * (row / 8) + 4 * (group % 4)) & 15;
      if ((pair & 3) >= pair >> 2) throw std::runtime_error("sparsity metadata does not ascend");
      const int index = k % 2 ? static_cast<int>(pair >> 2) : static_cast<int>(pair & 3);
      return a16<T>(all, row, k) * b16<T>(all, 4 * group + index, column);
    });
}

template <int COUNT, bool TRANSPOSED>
void load_matrices(uint32_t (&registers)[COUNT], const void* row) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(row);
  const Brought all = meet_warp(Meeting::load_matrix, 0xffffffffu, &address, sizeof address);
  const int g = lane() / 4, t = lane() % 4;
  for (int m = 0; m < COUNT; ++m) {
    uint16_t halves[2];
    for (int i = 0; i < 2; ++i) {
      const int of_row = TRANSPOSED ? 2 * t + i : g, column = TRANSPOSED ? g : 2 * t + i;
      const uintptr_t start = brought<uintptr_t>(all, 8 * m + of_row);
      if (start % 16) throw std::runtime_error("ldmatrix takes rows at multiples of 16 bytes");
      halves[i] = reinterpret_cast<const uint16_t*>(start)[column];
    }
    registers[m] = halves[0] | static_cast<uint32_t>(halves[1]) << 16;
  }
}

}  // namespace host_model
