// The layer norm of a residual sum in bfloat16: each row is read once, and stays in a thread's cache until it is normed.
// The sum is rounded before it is normed, as in plain torch; a row's sums have one order, whatever other rows there are.
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t SUMS = 4;  // registers, so that none waits for itself
thread_local std::vector<float> own_row;

// The sum of function(at, mask) over a row.
template <typename Function>
float over_row(int64_t width, Function function) {
    __m512 sums[SUMS];
    for (int i = 0; i < SUMS; ++i) sums[i] = _mm512_setzero_ps();
    for (int64_t from = 0; from < width; from += SUMS * LANES)
#pragma GCC unroll 4
        for (int i = 0; i < SUMS; ++i) {
            const int64_t at = from + i * LANES;
            if (at < width) sums[i] = _mm512_add_ps(sums[i], function(at, first(width - at)));
        }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

void norm_row(const Bfloat16* residual, const Bfloat16* update, int64_t width, const Bfloat16* weight,
              const Bfloat16* bias, float eps, Bfloat16* sum, Bfloat16* normed) {
    float* row = own_row.data();
    const float total = over_row(width, [&](int64_t at, __mmask16 mask) {
        const __m512 x = rounded(_mm512_add_ps(load(residual + at, mask), load(update + at, mask)), sum);
        store(sum + at, mask, x);
        _mm512_storeu_ps(row + at, x);
        return x;
    });
    const __m512 mean = _mm512_set1_ps(total / width);
    const float squares = over_row(width, [&](int64_t at, __mmask16 mask) {
        const __m512 apart = _mm512_maskz_sub_ps(mask, _mm512_loadu_ps(row + at), mean);
        return _mm512_mul_ps(apart, apart);
    });
    const float variance = std::isinf(squares) ? NAN : squares / width;  // of infinity the norm would be the bias
    const __m512 scale = _mm512_set1_ps(1.f / std::sqrt(variance + eps));
    for (int64_t at = 0; at < width; at += LANES) {
        const __mmask16 mask = first(width - at);
        const __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + at), mean), scale);
        store(normed + at, mask, _mm512_fmadd_ps(x, load(weight + at, mask), load(bias + at, mask)));
    }
}

}  // namespace

// residual, update [num_rows, width] -> their sum, and its norm; all contiguous.
extern "C" void norm_of_sum(const Bfloat16* residual, const Bfloat16* update, int64_t num_rows, int64_t width,
                            const Bfloat16* weight, const Bfloat16* bias, float eps, Bfloat16* sum, Bfloat16* normed,
                            int num_threads) {
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
    {
        own_row.resize(up_to(width, LANES));
#pragma omp for
        for (int64_t row = 0; row < num_rows; ++row)
            norm_row(residual + row * width, update + row * width, width, weight, bias, eps, sum + row * width,
                     normed + row * width);
    }
}
