// The log-sum-exp of each row of logits, in float32: one pass for the largest, one for the sum, while a row of 50,000 is
// in the cache. A row's sum has one order, whatever other rows there are.
#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace {

constexpr int64_t SUMS = 4;  // registers, so that none waits for itself

// NaN of a row that holds NaN or infinity; minus infinity of one that holds nothing else.
float log_sum_exp(const Bfloat16* row, int64_t width) {
    __m512 largest = _mm512_set1_ps(-INFINITY);
    for (int64_t at = 0; at < width; at += LANES) {
        const __mmask16 mask = first(width - at);
        largest = _mm512_mask_max_ps(largest, mask, largest, load(row + at, mask));
    }
    const float found = _mm512_reduce_max_ps(largest);
    const float most = found == -INFINITY ? 0.f : found;  // or all differences would be NaN
    __m512 sums[SUMS];
    for (int i = 0; i < SUMS; ++i) sums[i] = _mm512_setzero_ps();
    for (int64_t from = 0; from < width; from += SUMS * LANES)
#pragma GCC unroll 4
        for (int i = 0; i < SUMS; ++i) {
            const __mmask16 mask = first(std::max<int64_t>(0, width - from - i * LANES));
            const __m512 power = exponential(_mm512_sub_ps(load(row + from + i * LANES, mask), _mm512_set1_ps(most)));
            sums[i] = _mm512_mask_add_ps(sums[i], mask, sums[i], power);
        }
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    return most + std::log(_mm512_reduce_add_ps(sum));
}

}  // namespace

// logits [num_rows, width], rows `stride` apart -> normalizers [num_rows]
extern "C" void log_normalizers(const Bfloat16* logits, int64_t num_rows, int64_t width, int64_t stride,
                                float* normalizers, int num_threads) {
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1)
    for (int64_t row = 0; row < num_rows; ++row) normalizers[row] = log_sum_exp(logits + row * stride, width);
}
