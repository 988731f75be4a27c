"""What the compiled functions take, in the words of ctypes. It loads nothing."""

import ctypes

Pointer, Size, Int, Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
ARGUMENTS = {
    "int8_packed_size": (Size, Size),
    "int8_pack": (Pointer, Size, Size, Pointer, Pointer),
    "int8_product": (Pointer, Int, Size, Size, Size, Pointer, Pointer, Pointer, Pointer, Int, Pointer, Int),
    "bfloat16_packed_size": (Size, Size),
    "bfloat16_pack": (Pointer, Size, Size, Pointer),
    "bfloat16_product": (Pointer, Size, Size, Size, Pointer, Pointer, Int, Pointer, Int),
    "log_normalizers": (Pointer, Size, Size, Size, Pointer, Int),
    "norm_of_sum": (Pointer, Pointer, Size, Size, Pointer, Pointer, Float, Pointer, Pointer, Int),
    "packed_attention": (Pointer, Int),
    "step_attention": (Pointer, Pointer, Size, Pointer, Pointer, Int),
}


class Packed(ctypes.Structure):
    """`Packed` of packed_attention.cpp."""

    _fields_ = (
        *(("queries", Pointer), ("keys", Pointer), ("values", Pointer)),
        *(("query_stride", Size), ("query_head_stride", Size), ("key_stride", Size), ("key_head_stride", Size)),
        *(("value_stride", Size), ("value_head_stride", Size), ("lengths", Pointer), ("num_sequences", Size)),
        *(("num_heads", Size), ("head_dim", Size), ("scale", Float), ("slopes", Pointer)),
        *(("is_causal", Size), ("out", Pointer)),
    )


class Step(ctypes.Structure):
    """`Step` of attention.cpp."""

    _fields_ = (
        *(("queries", Pointer), ("row_stride", Size), ("head_stride", Size), ("num_heads", Size), ("head_dim", Size)),
        *(("scale", Float), ("slopes", Pointer), ("position", Pointer), ("out", Pointer)),
    )


class Pool(ctypes.Structure):
    """`Pool` of attention.cpp."""

    _fields_ = (
        *(("keys", Pointer), ("values", Pointer), ("place_stride", Size), ("head_stride", Size), ("capacity", Size)),
        *(("is_seen", Pointer), ("position", Pointer), ("entry", Pointer), ("new_keys", Pointer)),
        *(("new_values", Pointer), ("new_row_stride", Size), ("new_head_stride", Size)),
    )


def declare(library: ctypes.CDLL) -> None:
    """Tell ctypes what the functions take. Raises: AttributeError where one is missing."""
    for name, arguments in ARGUMENTS.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = Size if name.endswith("_size") else None
