// A product in integers in one pass: quantize rows, multiply, scale, add, activate. What it computes, and how it rounds,
// is in models/layers/int8.py, whose plain operators are its oracle.
//
// Weights are packed in panels of 64 outputs: [F / 64][D / 4][64][4] bytes, zeros behind their ends. A register holds 16
// outputs times 4 inputs, which one instruction (vpdpbusd) multiplies and adds to 16 sums.
#include <vector>

#include "panels.h"

namespace {

constexpr int64_t CHUNK_ROWS = 96;  // quantized together
constexpr int ZERO = 128;

struct Weight {
    int64_t outputs, inputs;
    const int8_t* packed;
    const float* scale;         // [outputs], padded to whole panels
    const int32_t* correction;  // [outputs], padded: ZERO times the sum of an output's integers
};

int64_t width_of(int64_t inputs) { return up_to(inputs, PANEL); }

// The largest magnitude: by bits, in whose order numbers are, NaN last.
float largest_of(const Bfloat16* row, int64_t width) {
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < width; i += 32) {
        const __mmask32 mask = width - i >= 32 ? 0xFFFFFFFF : (1u << (width - i)) - 1;
        const __m512i bits = _mm512_maskz_loadu_epi16(mask, row + i);
        largest = _mm512_max_epu16(largest, _mm512_and_si512(bits, _mm512_set1_epi16(0x7FFF)));
    }
    const __m512i low = _mm512_slli_epi32(largest, 16), high = _mm512_and_si512(largest, _mm512_set1_epi32(0xFFFF0000));
    const uint32_t bits = std::max(_mm512_reduce_max_epu32(low), _mm512_reduce_max_epu32(high));
    return _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(bits)));
}

float largest_of(const float* row, int64_t width) {
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < width; i += LANES) {
        const __m512i bits = _mm512_castps_si512(load(row + i, first(width - i)));
        largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF)));
    }
    const __m512 one = _mm512_castsi512_ps(_mm512_set1_epi32(_mm512_reduce_max_epu32(largest)));
    return _mm512_cvtss_f32(rounded(one, (const Bfloat16*)nullptr));
}

// Writes `width` integers and zeros up to a whole panel; returns the row's scale.
template <typename Number>
float quantize(const Number* row, int64_t width, uint8_t* integers) {
    const __m512 product = _mm512_set1_ps(largest_of(row, width) * (float)((1 + 1. / 128) / 127));
    const __m512 scale = rounded(product, (const Bfloat16*)nullptr), inverse = _mm512_div_ps(_mm512_set1_ps(1.f), scale);
    for (int64_t i = 0; i < width; i += LANES) {
        const __mmask16 mask = first(width - i);
        // Conversion cuts off, which rounds what is positive and has a half added.
        const __m512 shifted = _mm512_add_ps(_mm512_mul_ps(load(row + i, mask), inverse), _mm512_set1_ps(ZERO + 0.5f));
        _mm_storeu_si128((__m128i*)(integers + i), _mm512_maskz_cvtepi32_epi8(mask, _mm512_cvttps_epi32(shifted)));
    }
    for (int64_t i = up_to(width, LANES); i < width_of(width); i += LANES)
        _mm_storeu_si128((__m128i*)(integers + i), _mm_setzero_si128());
    return _mm512_cvtss_f32(scale);
}

template <int ROWS, typename Number>
void block(const uint8_t* integers, const float* row_scale, const Weight& weight, int64_t panel, const Number* bias,
           Activation kind, Number* out, int64_t stride) {
    const int64_t width = width_of(weight.inputs), num_steps = width / 4;
    const int8_t* packed = weight.packed + panel * PANEL * width;
    __m512i sums[ROWS][PARTS];
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; ++part) sums[row][part] = _mm512_setzero_si512();
    for (int64_t step = 0; step < num_steps; ++step) {
        __m512i parts[PARTS];
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; ++part) parts[part] = _mm512_loadu_si512(packed + (step * PARTS + part) * 64);
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row) {
            int32_t four;
            __builtin_memcpy(&four, integers + row * width + step * 4, 4);
            const __m512i same = _mm512_set1_epi32(four);
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; ++part)
                sums[row][part] = _mm512_dpbusd_epi32(sums[row][part], same, parts[part]);
        }
    }
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; ++part) {
        const int64_t at = panel * PANEL + part * LANES;
        if (at >= weight.outputs) break;
        const __mmask16 mask = first(weight.outputs - at);
        const __m512 scale = _mm512_loadu_ps(weight.scale + at);
        const __m512i correction = _mm512_loadu_si512(weight.correction + at);
        const __m512 added = bias ? load(bias + at, mask) : _mm512_setzero_ps();
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row) {
            const __m512i exact = _mm512_sub_epi32(sums[row][part], correction);
            const __m512 of_row = _mm512_set1_ps(row_scale[row]);
            __m512 x = _mm512_mul_ps(_mm512_cvtepi32_ps(exact), scale);
            if (kind == GELU || kind == GELU_TANH) {
                x = activated(_mm512_add_ps(_mm512_mul_ps(x, of_row), added), kind, out);
            } else {  // as addcmul rounds; of bfloat16 the product is exact
                x = rounded(x, out);
                x = bias ? _mm512_fmadd_ps(x, of_row, added) : _mm512_mul_ps(x, of_row);
                x = activated(x, kind, out);
            }
            store(out + row * stride + at, mask, x);
        }
    }
}

// Room that a thread keeps from call to call.
struct Room {
    std::vector<uint8_t> integers;
    std::vector<float> scale;
    void grow(int64_t rows, int64_t width) {
        if ((int64_t)integers.size() < rows * width) integers.resize(rows * width);
        if ((int64_t)scale.size() < rows) scale.resize(rows);
    }
};
thread_local Room own_room;

struct Rows {  // in integers, each with its scale
    const uint8_t* integers;
    const float* scale;
};

template <typename Number>
void product(const Number* hidden, int64_t num_rows, const Weight& weight, const Number* bias, Activation kind,
             Number* out, int num_threads) {
    const int64_t width = width_of(weight.inputs);
    const auto prepare = [&](int64_t start, int64_t size) {
        Room& room = own_room;
        room.grow(CHUNK_ROWS, width);
        for (int64_t row = 0; row < size; ++row)
            room.scale[row] =
                quantize(hidden + (start + row) * weight.inputs, weight.inputs, room.integers.data() + row * width);
        return Rows{room.integers.data(), room.scale.data()};
    };
    const auto compute = [&](const Rows& rows, int64_t start, int64_t size, int64_t panel) {
        Number* to = out + start * weight.outputs;
        in_blocks(size, [&](auto number, int64_t row) {
            block<number>(rows.integers + row * width, rows.scale + row, weight, panel, bias, kind,
                          to + row * weight.outputs, weight.outputs);
        });
    };
    by_chunks_and_panels(num_rows, CHUNK_ROWS, weight.outputs, num_threads, prepare, compute);
}

}  // namespace

extern "C" {

// Bytes of a packed weight.
int64_t int8_packed_size(int64_t outputs, int64_t inputs) { return up_to(outputs, PANEL) * width_of(inputs); }

// integers [outputs, inputs] -> packed, zeroed by the caller, and correction [outputs].
void int8_pack(const int8_t* integers, int64_t outputs, int64_t inputs, int8_t* packed, int32_t* correction) {
    const int64_t width = width_of(inputs);
    for (int64_t output = 0; output < outputs; ++output) {
        int8_t* to = packed + output / PANEL * PANEL * width + output % PANEL * 4;
        int32_t sum = 0;
        for (int64_t input = 0; input < inputs; ++input) {
            const int8_t one = integers[output * inputs + input];
            to[input / 4 * PANEL * 4 + input % 4] = one;
            sum += one;
        }
        correction[output] = ZERO * sum;
    }
}

// hidden [num_rows, inputs] -> out [num_rows, outputs], both contiguous, in bfloat16 or float32.
void int8_product(const void* hidden, int is_bfloat16, int64_t num_rows, int64_t outputs, int64_t inputs,
                  const int8_t* packed, const float* scale, const int32_t* correction, const void* bias, int activation,
                  void* out, int num_threads) {
    const Weight weight{outputs, inputs, packed, scale, correction};
    const Activation kind = (Activation)activation;
    if (is_bfloat16)
        product((const Bfloat16*)hidden, num_rows, weight, (const Bfloat16*)bias, kind, (Bfloat16*)out, num_threads);
    else
        product((const float*)hidden, num_rows, weight, (const float*)bias, kind, (float*)out, num_threads);
}
}
