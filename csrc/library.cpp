// Every op's schema: the kernels' table of contents. Formats: layout.h; kernels: cpu/, cuda/; fakes and references:
// torchcoinfer/ops/<op>.py (torchcoinfer/ops/schemas.py repeats the schemas for machines without this library, and a
// test compares the two).

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(torchcoinfer, m) {
  // Dense format
  m.def(
      "quantize_pack(Tensor weight, int bits, int group_size, bool symmetric, ScalarType scale_dtype) -> "
      "(Tensor packed, Tensor scales, Tensor zeros)");
  m.def("pack_codes(Tensor codes, int bits) -> Tensor");
  m.def("unpack_codes(Tensor packed, int bits, int N, int K) -> Tensor");
  m.def(
      "dequantize(Tensor packed, Tensor scales, Tensor? zeros, int bits, int group_size, int N, int K, "
      "ScalarType dtype) -> Tensor");
  m.def(
      "quant_linear(Tensor x, Tensor packed, Tensor scales, Tensor? zeros, Tensor? bias, int bits, int group_size, "
      "int out_features, int activation_bits=0, int layout=0, Tensor? x_scales=None, str activation='none') -> "
      "Tensor");
  m.def(
      "quant_conv2d(Tensor x, Tensor packed, Tensor scales, Tensor? zeros, Tensor? bias, int bits, int group_size, "
      "int out_channels, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, int groups, "
      "int activation_bits=0, int layout=0, str activation='none') -> Tensor");
  m.def(
      "quant_embedding(Tensor indices, Tensor packed, Tensor scales, Tensor? zeros, int bits, int group_size, "
      "int num_embeddings, int embedding_dim, ScalarType dtype) -> Tensor");

  // Sparse formats. bits 0: float survivors, else uint8 codes; mask: bool [N, K], true = kept
  m.def("sparse24_pack(Tensor values, Tensor mask, int bits) -> (Tensor index, Tensor values)");
  m.def("sparse24_unpack(Tensor index, Tensor values, int bits, int N, int K) -> (Tensor dense, Tensor mask)");
  m.def(
      "sparse24_linear(Tensor x, Tensor index, Tensor values, Tensor? scales, Tensor? zeros, Tensor? bias, int bits, "
      "int group_size, int out_features, int activation_bits=0, int layout=0, str activation='none') -> Tensor");
  m.def("bitmap_pack(Tensor values, Tensor mask, int bits) -> (Tensor mask, Tensor offsets, Tensor values)");
  m.def(
      "bitmap_unpack(Tensor mask, Tensor offsets, Tensor values, int bits, int N, int K) -> "
      "(Tensor dense, Tensor mask)");
  m.def(
      "bitmap_linear(Tensor x, Tensor mask, Tensor offsets, Tensor values, Tensor? scales, Tensor? zeros, "
      "Tensor? bias, int bits, int group_size, int out_features, int activation_bits=0, int layout=0, "
      "str activation='none') -> Tensor");

  // In place: canonical order <-> device order (layout_device.h); kind: "codes", "survivors" (bits 0: floats) or "index"
  m.def("reorder_(Tensor(a!) buffer, str kind, int bits, bool to_device) -> ()");

  // Activations at the cut
  m.def(
      "encode_activation(Tensor x, int bits, str granularity, int leading_dims) -> "
      "(Tensor codes, Tensor scale, Tensor zero_point)");
  m.def(
      "decode_activation(Tensor codes, Tensor scale, Tensor zero_point, int bits, str granularity, "
      "int[] trailing_shape, ScalarType dtype) -> Tensor");

  // compression
  m.def(
      "search_grid(Tensor groups, Tensor importance, Tensor start_scales, Tensor start_zeros, float[] shares, "
      "float unit, ScalarType scale_dtype, int bits, int refinements) -> (Tensor scales, Tensor zeros)");

  // Which CPU path runs now (TORCHCOINFER_ISA considered), and all this machine has, best first, comma-separated
  m.def("cpu_isa() -> str");
  m.def("cpu_isas() -> str");
}
