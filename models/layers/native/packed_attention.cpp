// Attention of whole sequences in bfloat16: scores and sums in float32, weights rounded to bfloat16 once.
//
// One task is a head of a sequence. Its keys are packed as [S / 16][K / 2][16][2] and its values as [S / 2][K][2], which
// vdpbf16ps multiplies by pairs; six queries by 64 keys (or numbers of values) are 24 registers of sums, as in int8.cpp.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t ROWS_OF_TILE = 6, TILE = 64, BLOCK_ROWS = 24;

struct Packed {
    const Bfloat16 *queries, *keys, *values;  // [N, H, K] by strides
    int64_t query_stride, query_head_stride, key_stride, key_head_stride, value_stride, value_head_stride;
    const int64_t* lengths;  // queries and keys of each sequence
    int64_t num_sequences, num_heads, head_dim;
    float scale;
    const float* slopes;  // of ALiBi, [H], or null
    int64_t is_causal;    // the queries are the last of the keys' tokens
    Bfloat16* out;        // [N, H, K]
};

struct Room {
    std::vector<uint32_t> keys, values, queries;
    std::vector<float> scores;
    std::vector<uint16_t> weights;
};
thread_local Room own_room;

template <typename Number>
Number* grown(std::vector<Number>& room, int64_t size) {
    if ((int64_t)room.size() < size) room.resize(size);
    return room.data();
}

// sums[row] += pairs of `left` (one of each row and step) times pairs of `right` (16 of each part and step).
template <int ROWS, int PARTS>
inline void multiply(const uint32_t* left, int64_t left_stride, const uint32_t* right, int64_t right_step,
                     int64_t right_part, int64_t num_steps, __m512 sums[ROWS][PARTS]) {
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; ++part) sums[row][part] = _mm512_setzero_ps();
    for (int64_t step = 0; step < num_steps; ++step) {
        __m512i parts[PARTS];
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; ++part)
            parts[part] = _mm512_loadu_si512(right + step * right_step + part * right_part);
#pragma GCC unroll 6
        for (int row = 0; row < ROWS; ++row) {
            const __m512i pair = _mm512_set1_epi32(left[row * left_stride + step]);
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; ++part)
                sums[row][part] = _mm512_dpbf16_ps(sums[row][part], (__m512bh)pair, (__m512bh)parts[part]);
        }
    }
}

template <int ROWS, int PARTS>
void score(const uint32_t* queries, const uint32_t* keys, int64_t num_pairs, float scale, float* scores, int64_t stride) {
    __m512 sums[ROWS][PARTS];
    multiply<ROWS, PARTS>(queries, num_pairs, keys, LANES, num_pairs * LANES, num_pairs, sums);
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; ++part)
            _mm512_storeu_ps(scores + row * stride + part * LANES, _mm512_mul_ps(sums[row][part], _mm512_set1_ps(scale)));
}

template <int ROWS, int PARTS>
void mix(const uint32_t* weights, int64_t stride, const uint32_t* values, int64_t wide, int64_t num_pairs,
         const float* inverse, Bfloat16* out, int64_t out_stride, int64_t width) {
    __m512 sums[ROWS][PARTS];
    multiply<ROWS, PARTS>(weights, stride, values, wide, LANES, num_pairs, sums);
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; ++part) {
            const __mmask16 mask = first(std::max<int64_t>(0, width - part * LANES));
            store(out + row * out_stride + part * LANES, mask, _mm512_mul_ps(sums[row][part], _mm512_set1_ps(inverse[row])));
        }
}

// Weights in bfloat16 of `seen` scores, zeros up to `total`; returns the sum of the weights as they are rounded.
float softmax(float* scores, int64_t seen, int64_t total, float slope, uint16_t* weights) {
    const __m512 lane = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512 largest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int64_t key = 0; key < seen; key += LANES) {
        const __mmask16 mask = first(seen - key);
        __m512 score = _mm512_loadu_ps(scores + key);
        if (slope != 0) {  // slope * (key - query): the query's part is the same for all
            const __m512 far = _mm512_add_ps(lane, _mm512_set1_ps((float)(key + 1 - seen)));
            score = _mm512_fmadd_ps(_mm512_set1_ps(slope), far, score);
            _mm512_storeu_ps(scores + key, score);
        }
        largest = _mm512_mask_max_ps(largest, mask, largest, score);
    }
    const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    for (int64_t key = 0; key < total; key += LANES) {
        __m256i rounded = _mm256_setzero_si256();
        if (key < seen) {
            const __m512 below = _mm512_sub_ps(_mm512_loadu_ps(scores + key), most);
            const __m512 weight = power_of_two(_mm512_mul_ps(below, _mm512_set1_ps(1.44269504f)));
            rounded = narrowed(_mm512_maskz_mov_ps(first(seen - key), weight));
            sum = _mm512_add_ps(sum, widened(rounded));
        }
        _mm256_storeu_si256((__m256i*)(weights + key), rounded);
    }
    return _mm512_reduce_add_ps(sum);
}

// rows[i][j] -> rows[j][i], of 32 bits each.
inline void transpose(__m512i rows[16]) {
    __m512i two[16], four[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        two[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        two[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            four[i + 2 * j] = _mm512_unpacklo_epi64(two[i + j], two[i + j + 2]);
            four[i + 2 * j + 1] = _mm512_unpackhi_epi64(two[i + j], two[i + j + 2]);
        }
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const __m512i even = _mm512_shuffle_i32x4(four[j], four[4 + j], 0x88), odd = _mm512_shuffle_i32x4(four[j], four[4 + j], 0xDD);
        const __m512i more = _mm512_shuffle_i32x4(four[8 + j], four[12 + j], 0x88), last = _mm512_shuffle_i32x4(four[8 + j], four[12 + j], 0xDD);
        rows[j] = _mm512_shuffle_i32x4(even, more, 0x88);
        rows[8 + j] = _mm512_shuffle_i32x4(even, more, 0xDD);
        rows[4 + j] = _mm512_shuffle_i32x4(odd, last, 0x88);
        rows[12 + j] = _mm512_shuffle_i32x4(odd, last, 0xDD);
    }
}

void pack_keys(const Bfloat16* keys, int64_t stride, int64_t count, int64_t width, int64_t num_pairs, uint32_t* to) {
    for (int64_t key = 0; key < count; key += LANES)
        for (int64_t at = 0; at < num_pairs; at += LANES) {
            const int64_t rest = width - 2 * at;
            const __mmask32 mask = rest >= 32 ? 0xFFFFFFFF : (1u << rest) - 1;
            __m512i rows[16];
            for (int i = 0; i < 16; ++i)
                rows[i] = _mm512_maskz_loadu_epi16(key + i < count ? mask : 0, keys + (key + i) * stride + 2 * at);
            transpose(rows);
            for (int64_t i = 0; i < std::min(LANES, num_pairs - at); ++i)
                _mm512_storeu_si512(to + key * num_pairs + (at + i) * LANES, rows[i]);
        }
}

void pack_values(const Bfloat16* values, int64_t stride, int64_t count, int64_t width, int64_t wide, uint32_t* to) {
    for (int64_t key = 0; key < count; key += 2)
        for (int64_t at = 0; at < wide; at += LANES) {
            const __mmask16 mask = first(std::max<int64_t>(0, width - at)), second = key + 1 < count ? mask : 0;
            const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, values + key * stride + at));
            const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(second, values + (key + 1) * stride + at));
            _mm512_storeu_si512(to + key / 2 * wide + at, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

// call<rows, PARTS>(...) for six rows, or the rest.
#define BY_ROWS(rest, call, PARTS, ...)               \
    switch (rest) {                                   \
        case 1: call<1, PARTS>(__VA_ARGS__); break;   \
        case 2: call<2, PARTS>(__VA_ARGS__); break;   \
        case 3: call<3, PARTS>(__VA_ARGS__); break;   \
        case 4: call<4, PARTS>(__VA_ARGS__); break;   \
        case 5: call<5, PARTS>(__VA_ARGS__); break;   \
        default: call<6, PARTS>(__VA_ARGS__);         \
    }

void attend(const Packed& all, int64_t first_query, int64_t first_key, int64_t num_queries, int64_t num_keys, int64_t head) {
    const int64_t width = all.head_dim, num_pairs = (width + 1) / 2, wide = up_to(width, TILE);
    const int64_t stride = up_to(num_keys, TILE), out_stride = all.num_heads * width;
    Room& room = own_room;
    uint32_t* keys = grown(room.keys, stride * num_pairs);
    uint32_t* values = grown(room.values, (num_keys + 1) / 2 * wide);
    uint32_t* queries = grown(room.queries, BLOCK_ROWS * num_pairs);
    float* scores = grown(room.scores, BLOCK_ROWS * stride);
    uint16_t* weights = grown(room.weights, BLOCK_ROWS * stride);
    pack_keys(all.keys + first_key * all.key_stride + head * all.key_head_stride, all.key_stride, num_keys, width, num_pairs, keys);
    pack_values(all.values + first_key * all.value_stride + head * all.value_head_stride, all.value_stride, num_keys, width, wide, values);
    const int64_t num_before = num_keys - num_queries;
    for (int64_t start = 0; start < num_queries; start += BLOCK_ROWS) {
        const int64_t size = std::min(BLOCK_ROWS, num_queries - start);
        const int64_t most_seen = all.is_causal ? num_before + start + size : num_keys;
        for (int64_t row = 0; row < size; ++row) {
            uint32_t* to = queries + row * num_pairs;
            to[num_pairs - 1] = 0;
            std::memcpy(to, all.queries + (first_query + start + row) * all.query_stride + head * all.query_head_stride, 2 * width);
        }
        for (int64_t key = 0; key < most_seen; key += TILE)
            for (int64_t row = 0; row < size; row += ROWS_OF_TILE) {
                const uint32_t *own = queries + row * num_pairs, *tile = keys + key * num_pairs;
                float* to = scores + row * stride + key;
                switch (std::min<int64_t>(4, (most_seen - key + LANES - 1) / LANES)) {
                    case 1: BY_ROWS(size - row, score, 1, own, tile, num_pairs, all.scale, to, stride) break;
                    case 2: BY_ROWS(size - row, score, 2, own, tile, num_pairs, all.scale, to, stride) break;
                    default: BY_ROWS(size - row, score, 4, own, tile, num_pairs, all.scale, to, stride)
                }
            }
        float inverse[BLOCK_ROWS];
        for (int64_t row = 0; row < size; ++row) {
            const int64_t seen = all.is_causal ? num_before + start + row + 1 : num_keys;
            const float slope = all.slopes ? all.slopes[head] : 0.f;
            inverse[row] = 1.f / softmax(scores + row * stride, seen, most_seen, slope, weights + row * stride);
        }
        for (int64_t at = 0; at < width; at += TILE)
            for (int64_t row = 0; row < size; row += ROWS_OF_TILE) {
                Bfloat16* out = all.out + (first_query + start + row) * out_stride + head * width + at;
                const uint32_t* pairs = (const uint32_t*)(weights + row * stride);
                BY_ROWS(size - row, mix, 4, pairs, stride / 2, values + at, wide, (most_seen + 1) / 2, inverse + row, out,
                        out_stride, width - at)
            }
    }
}

}  // namespace

extern "C" void packed_attention(const Packed* all, int num_threads) {
    std::vector<int64_t> first_query(all->num_sequences), first_key(all->num_sequences);
    for (int64_t i = 0, query = 0, key = 0; i < all->num_sequences; ++i) {
        first_query[i] = query, first_key[i] = key;
        query += all->lengths[2 * i], key += all->lengths[2 * i + 1];
    }
    const int64_t num_tasks = all->num_sequences * all->num_heads;
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1) schedule(dynamic)
    for (int64_t task = 0; task < num_tasks; ++task) {
        const int64_t i = task / all->num_heads, num_queries = all->lengths[2 * i], num_keys = all->lengths[2 * i + 1];
        if (num_queries && num_keys) attend(*all, first_query[i], first_key[i], num_queries, num_keys, task % all->num_heads);
    }
}
