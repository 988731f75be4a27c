// Activations of float32, before rounding.
#pragma once
#include "vectors.h"

enum Activation { NONE = 0, RELU = 1, GELU = 2, GELU_TANH = 3 };

// Two polynomials that meet at 0.9277 (N. Juffa's erff): within a unit of the last place.
inline __m512 error_function(__m512 x) {
    const __m512 magnitude = _mm512_abs_ps(x), square = _mm512_mul_ps(x, x), t = magnitude;
    __m512 far = _mm512_fmadd_ps(_mm512_set1_ps(-1.72853470e-5f), t, _mm512_set1_ps(3.83197126e-4f));
    const __m512 odd = _mm512_fmadd_ps(_mm512_set1_ps(-3.88396438e-3f), t, _mm512_set1_ps(2.42546219e-2f));
    far = _mm512_fmadd_ps(far, square, odd);
    far = _mm512_fmadd_ps(far, t, _mm512_set1_ps(-1.06777877e-1f));
    far = _mm512_fmadd_ps(far, t, _mm512_set1_ps(-6.34846687e-1f));
    far = _mm512_fmadd_ps(far, t, _mm512_set1_ps(-1.28717512e-1f));
    far = _mm512_fmadd_ps(far, t, _mm512_sub_ps(_mm512_setzero_ps(), t));
    far = _mm512_sub_ps(_mm512_set1_ps(1.f), exponential(far));
    const __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x80000000));
    far = _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(far), sign));
    __m512 near = _mm512_set1_ps(-5.96761703e-4f);
    near = _mm512_fmadd_ps(near, square, _mm512_set1_ps(4.99119423e-3f));
    near = _mm512_fmadd_ps(near, square, _mm512_set1_ps(-2.67681349e-2f));
    near = _mm512_fmadd_ps(near, square, _mm512_set1_ps(1.12819925e-1f));
    near = _mm512_fmadd_ps(near, square, _mm512_set1_ps(-3.76125336e-1f));
    near = _mm512_fmadd_ps(near, square, _mm512_set1_ps(1.28379166e-1f));
    near = _mm512_fmadd_ps(near, x, x);
    return _mm512_mask_mov_ps(near, _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(0.927734375f), _CMP_GT_OQ), far);
}

inline __m512 activated(__m512 x, Activation kind) {
    const __m512 one = _mm512_set1_ps(1.f);
    if (kind == RELU) return _mm512_max_ps(_mm512_setzero_ps(), x);  // of NaN: the second, NaN
    if (kind == GELU) {
        const __m512 weight = _mm512_add_ps(one, error_function(_mm512_mul_ps(x, _mm512_set1_ps(0.707106781f))));
        return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.5f)), weight);
    }
    if (kind == GELU_TANH) {  // x sigmoid(2 y), y = sqrt(2 / pi) (x + 0.044715 x^3)
        const __m512 slope = _mm512_set1_ps(-1.5957691216f), cubic = _mm512_set1_ps(-1.5957691216f * 0.044715f);
        const __m512 minus = _mm512_mul_ps(x, _mm512_fmadd_ps(_mm512_mul_ps(x, x), cubic, slope));
        return _mm512_div_ps(x, _mm512_add_ps(one, exponential(minus)));
    }
    return x;
}
