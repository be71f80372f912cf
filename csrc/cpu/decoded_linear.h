// Linear layers whose weight is decoded for torch's own product. For the register*.cpp files only.

#pragma once

#include <algorithm>
#include <atomic>
#include <optional>

#include "cpu/decoded.h"
#include "cpu/tensor.h"
#include "torch_linear.h"

#if TORCHCOINFER_X86

namespace torchcoinfer {

// x [.., K] times W^T, plus bias, all bfloat16, part by part of the weight. decode(begin, end, rows) writes n-blocks;
// nothing where it cannot.
template <typename Decode>
std::optional<Tensor> decoded_linear(const Tensor& x, int64_t N, const std::optional<Tensor>& bias,
                                     const Decode& decode) {
  const int64_t K = x.size(-1), blocks = ceil_div(N, BLOCK_N);
  const int64_t most = std::clamp<int64_t>(DECODED_BYTES / (2 * BLOCK_N * K), 1, blocks);
  const int64_t together = ceil_div(blocks, ceil_div(blocks, most));  // nearly equal parts: torch is slow on small ones
  const Tensor part = empty_cpu({std::min(together * BLOCK_N, N), K}, ScalarType::BFloat16);
  auto* weight = static_cast<uint16_t*>(part.mutable_data_ptr());
  const auto decode_part = [&](int64_t first, int64_t count) {
    std::atomic<bool> sound{true};
    torch::stable::parallel_for(0, count, ceil_div(DECODED_GRAIN, BLOCK_N * K), [&](int64_t begin, int64_t end) {
      if (!decode(first + begin, first + end, weight + begin * BLOCK_N * K)) sound = false;
    });
    return sound.load();
  };
  std::optional<Tensor> beside;
  if (bias.has_value()) beside = torch::stable::to(*bias, ScalarType::BFloat16);
  if (together == blocks) {
    if (!decode_part(0, blocks)) return std::nullopt;
    return torch_linear(x, part, beside);
  }
  Tensor y = empty_cpu(RowsOf(x, N).size, ScalarType::BFloat16);
  for (int64_t first = 0; first < blocks; first += together) {
    const int64_t count = std::min(together, blocks - first), n = first * BLOCK_N;
    const int64_t columns = std::min(count * BLOCK_N, N - n);
    if (!decode_part(first, count)) return std::nullopt;
    std::optional<Tensor> of_part;
    if (beside.has_value()) of_part = torch::stable::narrow(*beside, 0, n, columns);
    Tensor rows = part, target = torch::stable::narrow(y, -1, n, columns);
    torch::stable::copy_(target, torch_linear(x, torch::stable::narrow(rows, 0, 0, columns), of_part));
  }
  return y;
}

}  // namespace torchcoinfer

#endif
