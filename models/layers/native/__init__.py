"""Kernels in C++ for processors with AVX-512, compiled where a compiler is; plain torch does the same without them."""
