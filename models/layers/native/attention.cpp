// Attention of a decode step in bfloat16 with sums in float32: each query over its prompt and over what it generated, with
// one softmax. A key is read once for four queries of a unit (beams); nothing but the result is written.
//
// A query's sums have one order, whatever other queries and units there are: its bits do not depend on them.
#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t MOST_ROWS = 4;   // queries of one pass: with four times four registers of sums
constexpr int64_t KEYS = 4;        // whose scores are summed together
constexpr int64_t BLOCK = 64;      // numbers of a head that are in registers at once

struct Segment {  // keys and values of a prompt, [H, count, K] each
    const Bfloat16 *keys, *values;
    int64_t count, start;  // start: the position of the first
};

struct Unit {  // sequences that share a prompt
    int64_t first_row, num_rows, first_segment, num_segments, place, num_entries;
};

struct Pool {  // generated tokens, [places, H, capacity, K]; null without
    Bfloat16 *keys, *values;
    int64_t place_stride, head_stride, capacity;
    const uint8_t* is_seen;          // [places, rows of a unit, capacity]
    const int64_t* position;         // [places, capacity]
    const int64_t* entry;            // [places, rows of a unit]: where the new token goes
    const Bfloat16 *new_keys, *new_values;
    int64_t new_row_stride, new_head_stride;
};

struct Step {
    const Bfloat16* queries;
    int64_t row_stride, head_stride, num_heads, head_dim;
    float scale;
    const float* slopes;             // of ALiBi, [H], or null
    const int64_t* position;         // of each row, with slopes
    Bfloat16* out;                   // [N, H, K]
};

struct Room {
    std::vector<float> scores, queries;
};
thread_local Room own_room;

// The sums of four registers, as four numbers.
inline __m128 four_sums(__m512 a, __m512 b, __m512 c, __m512 d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// scores[row * stride + key] = query . key; rounds up the number of keys, and repeats the last one.
template <int ROWS>
void score(const float* queries, const Bfloat16* keys, int64_t count, int64_t width, float* scores, int64_t stride) {
    for (int64_t key = 0; key < count; key += KEYS) {
        const Bfloat16* of_key[KEYS];
#pragma GCC unroll 4
        for (int i = 0; i < KEYS; ++i) of_key[i] = keys + std::min(key + i, count - 1) * width;
        __m512 sums[ROWS][KEYS];
#pragma GCC unroll 4
        for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
            for (int i = 0; i < KEYS; ++i) sums[row][i] = _mm512_setzero_ps();
        for (int64_t at = 0; at < width; at += LANES) {
            const __mmask16 mask = first(width - at);
            __m512 part[KEYS];
#pragma GCC unroll 4
            for (int i = 0; i < KEYS; ++i) part[i] = load(of_key[i] + at, mask);
#pragma GCC unroll 4
            for (int row = 0; row < ROWS; ++row) {
                const __m512 query = _mm512_loadu_ps(queries + row * up_to(width, LANES) + at);
#pragma GCC unroll 4
                for (int i = 0; i < KEYS; ++i) sums[row][i] = _mm512_fmadd_ps(query, part[i], sums[row][i]);
            }
        }
#pragma GCC unroll 4
        for (int row = 0; row < ROWS; ++row)
            _mm_storeu_ps(scores + row * stride + key, four_sums(sums[row][0], sums[row][1], sums[row][2], sums[row][3]));
    }
}

// Adds weights [ROWS] times values to the sums of `parts` registers a row.
template <int ROWS>
void mix(const float* weights, int64_t stride, const Bfloat16* values, int64_t count, int64_t width, int64_t at,
         __m512 sums[ROWS][4]) {
    __mmask16 mask[4];
#pragma GCC unroll 4
    for (int part = 0; part < 4; ++part) mask[part] = first(std::max<int64_t>(0, width - at - part * LANES));
    for (int64_t key = 0; key < count; ++key) {
        __m512 value[4];
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) value[part] = load(values + key * width + at + part * LANES, mask[part]);
#pragma GCC unroll 4
        for (int row = 0; row < ROWS; ++row) {
            const __m512 weight = _mm512_set1_ps(weights[row * stride + key]);
#pragma GCC unroll 4
            for (int part = 0; part < 4; ++part) sums[row][part] = _mm512_fmadd_ps(weight, value[part], sums[row][part]);
        }
    }
}

// scores + slope * (start + key - position)
void add_alibi(float* scores, int64_t count, float slope, int64_t distance) {
    const __m512 lane = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t key = 0; key < count; key += LANES) {
        const __m512 far = _mm512_add_ps(lane, _mm512_set1_ps((float)(distance + key)));
        const __mmask16 mask = first(count - key);
        store(scores + key, mask, _mm512_fmadd_ps(_mm512_set1_ps(slope), far, load(scores + key, mask)));
    }
}

// Exponentials in place of scores; returns their sum.
float softmax(float* scores, int64_t count) {
    __m512 largest = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int64_t key = 0; key < count; key += LANES)
        largest = _mm512_mask_max_ps(largest, first(count - key), largest, load(scores + key, first(count - key)));
    const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    for (int64_t key = 0; key < count; key += LANES) {
        const __mmask16 mask = first(count - key);
        const __m512 score = _mm512_sub_ps(load(scores + key, mask), most);
        // Exactly 0 where a sequence has no such ancestor, and where the weight is too small for float32.
        const __mmask16 counts = _mm512_cmp_ps_mask(score, _mm512_set1_ps(-100.f), _CMP_NLT_UQ) & mask;
        const __m512 weight = _mm512_maskz_mov_ps(counts, exponential(score));
        store(scores + key, mask, weight);
        sum = _mm512_add_ps(sum, weight);
    }
    return _mm512_reduce_add_ps(sum);
}

template <int ROWS>
void attend(const Step& step, const Segment* segments, const Pool* pool, const Unit& unit, int64_t from, int64_t head) {
    const int64_t width = step.head_dim, wide = up_to(width, LANES);
    int64_t most = up_to(unit.num_entries, KEYS);
    for (int64_t i = 0; i < unit.num_segments; ++i) most += up_to(segments[unit.first_segment + i].count, KEYS);
    const int64_t stride = up_to(most, LANES);
    Room& room = own_room;
    if ((int64_t)room.scores.size() < ROWS * stride) room.scores.resize(ROWS * stride);
    if ((int64_t)room.queries.size() < ROWS * wide) room.queries.resize(ROWS * wide);
    float *scores = room.scores.data(), *queries = room.queries.data();
    const int64_t first_row = unit.first_row + from;
    for (int row = 0; row < ROWS; ++row) {
        const Bfloat16* query = step.queries + (first_row + row) * step.row_stride + head * step.head_stride;
        for (int64_t at = 0; at < wide; at += LANES)
            _mm512_storeu_ps(queries + row * wide + at,
                             _mm512_mul_ps(load(query + at, first(width - at)), _mm512_set1_ps(step.scale)));
    }
    int64_t place = 0;  // among scores
    for (int64_t i = 0; i < unit.num_segments; ++i) {
        const Segment& segment = segments[unit.first_segment + i];
        score<ROWS>(queries, segment.keys + head * segment.count * width, segment.count, width, scores + place, stride);
        for (int row = 0; row < ROWS && step.slopes; ++row)
            add_alibi(scores + row * stride + place, segment.count, step.slopes[head],
                      segment.start - step.position[first_row + row]);
        place += segment.count;
    }
    const Bfloat16* own_values = nullptr;
    if (pool) {
        const int64_t at = unit.place * pool->place_stride + head * pool->head_stride;
        own_values = pool->values + at;
        score<ROWS>(queries, pool->keys + at, unit.num_entries, width, scores + place, stride);
        for (int row = 0; row < ROWS; ++row) {
            const uint8_t* is_seen = pool->is_seen + (unit.place * unit.num_rows + from + row) * pool->capacity;
            const int64_t* position = pool->position + unit.place * pool->capacity;
            float* own = scores + row * stride + place;
            for (int64_t entry = 0; entry < unit.num_entries; ++entry) {
                if (!is_seen[entry]) own[entry] = -INFINITY;
                else if (step.slopes) own[entry] += step.slopes[head] * (position[entry] - step.position[first_row + row]);
            }
        }
        place += unit.num_entries;
    }
    float sums[ROWS];
    for (int row = 0; row < ROWS; ++row) sums[row] = place ? softmax(scores + row * stride, place) : 1.f;
    for (int64_t at = 0; at < width; at += BLOCK) {
        __m512 mixed[ROWS][4];
        for (int row = 0; row < ROWS; ++row)
            for (int part = 0; part < 4; ++part) mixed[row][part] = _mm512_setzero_ps();
        place = 0;
        for (int64_t i = 0; i < unit.num_segments; ++i) {
            const Segment& segment = segments[unit.first_segment + i];
            mix<ROWS>(scores + place, stride, segment.values + head * segment.count * width, segment.count, width, at, mixed);
            place += segment.count;
        }
        if (pool) mix<ROWS>(scores + place, stride, own_values, unit.num_entries, width, at, mixed);
        for (int row = 0; row < ROWS; ++row) {
            Bfloat16* out = step.out + ((first_row + row) * step.num_heads + head) * width + at;
            const __m512 inverse = _mm512_set1_ps(1.f / sums[row]);
            for (int part = 0; part < 4 && at + part * LANES < width; ++part)
                store(out + part * LANES, first(width - at - part * LANES), _mm512_mul_ps(mixed[row][part], inverse));
        }
    }
}

void write_new(const Step& step, const Pool& pool, const Unit& unit, int64_t head) {
    for (int64_t row = 0; row < unit.num_rows; ++row) {
        const int64_t from = (unit.first_row + row) * pool.new_row_stride + head * pool.new_head_stride;
        const int64_t entry = pool.entry[unit.place * unit.num_rows + row];
        const int64_t to = unit.place * pool.place_stride + head * pool.head_stride + entry * step.head_dim;
        std::copy_n(pool.new_keys + from, step.head_dim, pool.keys + to);
        std::copy_n(pool.new_values + from, step.head_dim, pool.values + to);
    }
}

}  // namespace

extern "C" void step_attention(const Step* step, const Unit* units, int64_t num_units, const Segment* segments,
                               const Pool* pool, int num_threads) {
    const int64_t num_tasks = num_units * step->num_heads;
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1) schedule(dynamic, 4)
    for (int64_t task = 0; task < num_tasks; ++task) {
        const Unit& unit = units[task / step->num_heads];
        const int64_t head = task % step->num_heads;
        if (pool) write_new(*step, *pool, unit, head);
        for (int64_t from = 0; from < unit.num_rows; from += MOST_ROWS) {
            switch (std::min(MOST_ROWS, unit.num_rows - from)) {
                case 1: attend<1>(*step, segments, pool, unit, from, head); break;
                case 2: attend<2>(*step, segments, pool, unit, from, head); break;
                case 3: attend<3>(*step, segments, pool, unit, from, head); break;
                default: attend<4>(*step, segments, pool, unit, from, head);
            }
        }
    }
}
