// A product in bfloat16 with sums in float32 in one pass: multiply, add, activate, and round once.
//
// Weights are packed in panels of 64 outputs: [F / 64][D / 2][64][2] numbers, zeros behind their ends. A register holds 16
// outputs times 2 inputs, which one instruction (vdpbf16ps) multiplies and adds to 16 sums.
//
// A row's sums have one order, whatever other rows there are: its bits do not depend on them.
#include "panels.h"

namespace {

constexpr int64_t PAIR = 2;
constexpr int64_t CHUNK_BYTES = 192 << 10;  // of rows: with a panel they fill a processor's own cache by half

struct Weight {
    int64_t outputs, inputs;
    const Bfloat16* packed;
};

int64_t num_pairs(int64_t inputs) { return (inputs + PAIR - 1) / PAIR; }

inline __m512i both(const Bfloat16* at) {
    int32_t bits;
    __builtin_memcpy(&bits, at, sizeof bits);
    return _mm512_set1_epi32(bits);
}

template <int ROWS>
inline void add_products(const __m512i rows[ROWS], const Bfloat16* packed, __m512 sums[ROWS][PARTS]) {
    __m512i parts[PARTS];
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; ++part) parts[part] = _mm512_loadu_si512(packed + part * LANES * PAIR);
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; ++part)
            sums[row][part] = _mm512_dpbf16_ps(sums[row][part], (__m512bh)rows[row], (__m512bh)parts[part]);
}

template <int ROWS>
void block(const Bfloat16* hidden, const Weight& weight, int64_t panel, const Bfloat16* bias, Activation kind,
           Bfloat16* out) {
    const int64_t pairs = weight.inputs / PAIR, step = PANEL * PAIR;
    const Bfloat16* packed = weight.packed + panel * step * num_pairs(weight.inputs);
    __m512 sums[ROWS][PARTS];
    __m512i rows[ROWS];
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; ++part) sums[row][part] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < pairs; ++pair, packed += step) {
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row) rows[row] = both(hidden + row * weight.inputs + pair * PAIR);
        add_products<ROWS>(rows, packed, sums);
    }
    if (weight.inputs % PAIR) {
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row)
            rows[row] = _mm512_set1_epi32(hidden[row * weight.inputs + weight.inputs - 1].bits);
        add_products<ROWS>(rows, packed, sums);
    }
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; ++part) {
        const int64_t at = panel * PANEL + part * LANES;
        if (at >= weight.outputs) break;
        const __mmask16 mask = first(weight.outputs - at);
        const __m512 added = bias ? load(bias + at, mask) : _mm512_setzero_ps();
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row)
            store(out + row * weight.outputs + at, mask, activated(_mm512_add_ps(sums[row][part], added), kind, out));
    }
}

}  // namespace

extern "C" {

// Numbers of a packed weight.
int64_t bfloat16_packed_size(int64_t outputs, int64_t inputs) {
    return up_to(outputs, PANEL) * num_pairs(inputs) * PAIR;
}

// weight [outputs, inputs] -> packed, zeroed by the caller.
void bfloat16_pack(const Bfloat16* weight, int64_t outputs, int64_t inputs, Bfloat16* packed) {
    for (int64_t output = 0; output < outputs; ++output) {
        Bfloat16* to = packed + (output / PANEL * num_pairs(inputs) * PANEL + output % PANEL) * PAIR;
        for (int64_t input = 0; input < inputs; ++input)
            to[input / PAIR * PANEL * PAIR + input % PAIR] = weight[output * inputs + input];
    }
}

// hidden [num_rows, inputs] -> out [num_rows, outputs], both contiguous; bias may be null.
void bfloat16_product(const Bfloat16* hidden, int64_t num_rows, int64_t outputs, int64_t inputs, const Bfloat16* packed,
                      const Bfloat16* bias, int activation, Bfloat16* out, int num_threads) {
    const Weight weight{outputs, inputs, packed};
    const int64_t row_bytes = std::max<int64_t>(1, inputs) * (int64_t)sizeof(Bfloat16);
    const int64_t own_cache = CHUNK_BYTES / row_bytes / BLOCK_ROWS * BLOCK_ROWS;
    const auto prepare = [&](int64_t start, int64_t) { return hidden + start * inputs; };
    const auto compute = [&](const Bfloat16* rows, int64_t start, int64_t size, int64_t panel) {
        Bfloat16* to = out + start * outputs;
        in_blocks(size, [&](auto number, int64_t row) {
            block<number>(rows + row * inputs, weight, panel, bias, (Activation)activation, to + row * outputs);
        });
    };
    by_chunks_and_panels(num_rows, std::max(BLOCK_ROWS, own_cache), outputs, num_threads, prepare, compute);
}
}
