// Sums of the rows of each sequence, in their order, so that no sum depends on the number of threads
// or on the sequences beside it. Threads share the columns.
#include <omp.h>

#include "vectors.h"

namespace {

void add_row(const float* x, float* y, Range columns) {
    long c = columns.begin;
    for (; c + LANES <= columns.end; c += LANES) store(y + c, load<floats>(y + c) + load<floats>(x + c));
    for (; c < columns.end; c++) y[c] += x[c];
}

}  // namespace

EXPORT void sum_sequences(const float* x, const int64_t* lengths, float* y, long sequences, long width,
                          int threads) {
#pragma omp parallel num_threads(threads)
    {
        Range columns = part_of(width, LANES, omp_get_thread_num(), omp_get_num_threads());
        const float* row = x;
        for (long s = 0; s < sequences; s++) {
            for (long c = columns.begin; c < columns.end; c++) y[s * width + c] = 0;
            for (long t = 0; t < lengths[s]; t++, row += width) add_row(row, y + s * width, columns);
        }
    }
}
