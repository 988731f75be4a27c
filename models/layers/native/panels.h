// How products share their work: weights are in panels of 64 outputs, and rows are in blocks of six, whose sums with a
// panel are 24 registers. A weight that was loaded is used six times, and no sum waits for itself.
#pragma once
#include <algorithm>
#include <type_traits>

#include "activations.h"

constexpr int64_t PANEL = 64, PARTS = PANEL / LANES, BLOCK_ROWS = 6;

// Calls block(a constant number of rows, the first one), for blocks of six rows and what is left.
template <typename Block>
void in_blocks(int64_t num_rows, Block block) {
    for (int64_t row = 0; row < num_rows; row += BLOCK_ROWS) {
        switch (std::min(BLOCK_ROWS, num_rows - row)) {
            case 1: block(std::integral_constant<int, 1>{}, row); break;
            case 2: block(std::integral_constant<int, 2>{}, row); break;
            case 3: block(std::integral_constant<int, 3>{}, row); break;
            case 4: block(std::integral_constant<int, 4>{}, row); break;
            case 5: block(std::integral_constant<int, 5>{}, row); break;
            default: block(std::integral_constant<int, 6>{}, row);
        }
    }
}

// Calls compute(prepare(start, size), start, size, panel) for each chunk of rows and each panel; chunks stay in the cache
// beside a panel. A thread takes whole chunks, or panels of each where there are fewer chunks than threads.
template <typename Prepare, typename Compute>
void by_chunks_and_panels(int64_t num_rows, int64_t chunk_rows, int64_t outputs, int num_threads, Prepare prepare,
                          Compute compute) {
    const int64_t num_panels = up_to(outputs, PANEL) / PANEL, num_chunks = (num_rows + chunk_rows - 1) / chunk_rows;
    const bool by_chunks = num_chunks >= num_threads;
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && by_chunks) schedule(dynamic)
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
        const int64_t start = chunk * chunk_rows, size = std::min(chunk_rows, num_rows - start);
        const auto prepared = prepare(start, size);
#pragma omp parallel for num_threads(num_threads) if (num_threads > 1 && !by_chunks)
        for (int64_t panel = 0; panel < num_panels; ++panel) compute(prepared, start, size, panel);
    }
}
