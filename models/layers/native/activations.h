// Activations of float32, before rounding: within some units of its last place where they stay in float32, and within
// 2^-17 where they are rounded to bfloat16's 8 bits, which takes half as long.
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

inline __m512 relu(__m512 x) { return _mm512_max_ps(_mm512_setzero_ps(), x); }  // of NaN: the second, NaN

inline __m512 activated(__m512 x, Activation kind, const float*) {
    const __m512 one = _mm512_set1_ps(1.f);
    if (kind == RELU) return relu(x);
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

// max(x, 0) - |x| erfc(|x| / sqrt 2) / 2. The logarithm of what |x| is multiplied by is nearly a parabola.
inline __m512 nearly_gelu(__m512 x) {
    const __m512 magnitude = _mm512_abs_ps(x), t = _mm512_min_ps(_mm512_set1_ps(14.f), magnitude);  // of NaN: NaN
    __m512 q = _mm512_set1_ps(-1.576230832e-6f);  // nearest polynomial to log2(erfc(t / sqrt 2) / 2) where it matters
    q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(5.702924165e-5f));
    q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(-8.986691850e-4f));
    q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(8.396643678e-3f));
    q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(-5.375631699e-2f));
    q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(-4.586505944e-1f));
    q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(-1.151179322f));
    q = _mm512_fmadd_ps(q, t, _mm512_set1_ps(-1.000002502f));
    return _mm512_fnmadd_ps(magnitude, power_of_two(q), relu(x));  // of infinity: infinity times 0, NaN
}

inline __m512 nearly_gelu_tanh(__m512 x) {  // x / (1 + 2^z), as above
    const float slope = -1.5957691216f * 1.4426950409f;
    const __m512 cubic = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(slope * 0.044715f), _mm512_set1_ps(slope));
    const __m512 z = _mm512_min_ps(_mm512_set1_ps(200.f), _mm512_mul_ps(x, cubic));  // 2^200 is infinity
    return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.f), power_of_two(z)));
}

inline __m512 activated(__m512 x, Activation kind, const Bfloat16*) {
    if (kind == RELU) return relu(x);
    if (kind == GELU) return nearly_gelu(x);
    return kind == GELU_TANH ? nearly_gelu_tanh(x) : x;
}
