"""Schemas of all ops, as in ``csrc/library.cpp`` (a test compares), for when the library is absent."""

SCHEMAS = (
    "quantize_pack(Tensor weight, int bits, int group_size, bool symmetric, ScalarType scale_dtype) -> "
    "(Tensor packed, Tensor scales, Tensor zeros)",
    "pack_codes(Tensor codes, int bits) -> Tensor",
    "unpack_codes(Tensor packed, int bits, int N, int K) -> Tensor",
    "dequantize(Tensor packed, Tensor scales, Tensor? zeros, int bits, int group_size, int N, int K, "
    "ScalarType dtype) -> Tensor",
    "quant_linear(Tensor x, Tensor packed, Tensor scales, Tensor? zeros, Tensor? bias, int bits, int "
    "group_size, int out_features, int activation_bits=0, int layout=0, Tensor? x_scales=None, "
    "str activation='none') -> Tensor",
    "quant_conv2d(Tensor x, Tensor packed, Tensor scales, Tensor? zeros, Tensor? bias, int bits, int "
    "group_size, int out_channels, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, "
    "int groups, int activation_bits=0, int layout=0, str activation='none') -> Tensor",
    "quant_embedding(Tensor indices, Tensor packed, Tensor scales, Tensor? zeros, int bits, int "
    "group_size, int num_embeddings, int embedding_dim, ScalarType dtype) -> Tensor",
    "sparse24_pack(Tensor values, Tensor mask, int bits) -> (Tensor index, Tensor values)",
    "sparse24_unpack(Tensor index, Tensor values, int bits, int N, int K) -> (Tensor dense, Tensor mask)",
    "sparse24_linear(Tensor x, Tensor index, Tensor values, Tensor? scales, Tensor? zeros, Tensor? bias, "
    "int bits, int group_size, int out_features, int activation_bits=0, int layout=0, "
    "str activation='none') -> Tensor",
    "bitmap_pack(Tensor values, Tensor mask, int bits) -> (Tensor mask, Tensor offsets, Tensor values)",
    "bitmap_unpack(Tensor mask, Tensor offsets, Tensor values, int bits, int N, int K) -> (Tensor dense, "
    "Tensor mask)",
    "bitmap_linear(Tensor x, Tensor mask, Tensor offsets, Tensor values, Tensor? scales, Tensor? zeros, "
    "Tensor? bias, int bits, int group_size, int out_features, int activation_bits=0, int layout=0, "
    "str activation='none') -> Tensor",
    "reorder_(Tensor(a!) buffer, str kind, int bits, bool to_device) -> ()",
    "encode_activation(Tensor x, int bits, str granularity, int leading_dims) -> (Tensor codes, Tensor "
    "scale, Tensor zero_point)",
    "decode_activation(Tensor codes, Tensor scale, Tensor zero_point, int bits, str granularity, int[] "
    "trailing_shape, ScalarType dtype) -> Tensor",
    "search_grid(Tensor groups, Tensor importance, Tensor start_scales, Tensor start_zeros, float[] shares, "
    "float unit, ScalarType scale_dtype, int bits, int refinements) -> (Tensor scales, Tensor zeros)",
    "cpu_isa() -> str",
    "cpu_isas() -> str",
)
