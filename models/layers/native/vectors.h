// What the kernels share: 16 numbers of float32 in a register, to and from memory in bfloat16 or float32.
// Products and sums are fused only where fmadd says so (-ffp-contract=off): plain torch rounds between them.
#pragma once
#include <immintrin.h>

#include <cstdint>

constexpr int64_t LANES = 16;

inline int64_t up_to(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

inline __mmask16 first(int64_t count) { return count >= LANES ? 0xFFFF : (__mmask16)((1u << count) - 1); }

struct Bfloat16 {
    uint16_t bits;
};

inline __m512 widened(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }

// To the nearest, ties to even, as torch rounds. The instruction, where there is one, takes numbers below 2^-126 for zeros.
inline const bool ROUNDS_BY_INSTRUCTION = __builtin_cpu_supports("avx512bf16");

inline __m256i narrowed(__m512 x) {
    if (ROUNDS_BY_INSTRUCTION) return (__m256i)_mm512_cvtneps_pbh(x);
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i high = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    high = _mm512_mask_mov_epi32(high, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FC00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(high, 16));
}

inline __m512 rounded(__m512 x, const Bfloat16*) { return widened(narrowed(x)); }
inline __m512 rounded(__m512 x, const float*) { return x; }

inline __m512 load(const Bfloat16* at, __mmask16 mask) { return widened(_mm256_maskz_loadu_epi16(mask, at)); }
inline __m512 load(const float* at, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, at); }

inline void store(Bfloat16* at, __mmask16 mask, __m512 x) { _mm256_mask_storeu_epi16(at, mask, narrowed(x)); }
inline void store(float* at, __mmask16 mask, __m512 x) { _mm512_mask_storeu_ps(at, mask, x); }

// exp(x), within 2 units of the last place; 0 below -104, infinity above 89, NaN of NaN.
inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104.f), _mm512_min_ps(_mm512_set1_ps(89.f), x));  // of NaN: the second, NaN
    const int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), nearest);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0.693359375f), x);  // ln 2 in two parts
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);  // Cephes, expf
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.f)));
    return _mm512_scalef_ps(p, n);
}

// 2^x, within 2^-18 of it, for what is rounded to bfloat16's 8 bits; 0 below -150, NaN of NaN.
inline __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-160.f), x);  // of NaN: the second, NaN
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(9.570101757e-3f);  // nearest polynomial to 2^r over [-1/2, 1/2]
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.591786031e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.402474483e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.931218147e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.999992614e-1f));
    return _mm512_scalef_ps(p, n);
}
