// y = x w^T + bias for few rows of x, with w (outs, width) as it lies in the checkpoint, in fp32, fp16
// or bf16, and all sums in fp32. Each weight is read from memory once. A row's result does not depend
// on the rows beside it.
#include <omp.h>

#include "exports.h"

namespace {

constexpr int STEP = 2 * LANES;  // elements of w that are taken at a time
constexpr int MOST_ROWS = 8;
constexpr int CHUNK = 24;  // rows of w that stay in the cache for further rows of x

// Two vectors of weights: neighbours, but of bf16 those in even and those in odd places.
INLINE void load_pair(const float* w, floats& a, floats& b) {
    a = load<floats>(w);
    b = load<floats>(w + LANES);
}

INLINE void load_pair(const uint16_t* w, floats& a, floats& b) {
    ints both = load<ints>(w);
    a = (floats)(both << 16);
    b = (floats)(both & ints(spread(int32_t(0xFFFF0000u))));
}

INLINE void load_pair(const Half* w, floats& a, floats& b) {
    a = load_floats(w);
    b = load_floats(w + LANES);
}

template <class W>
constexpr bool IS_PAIRED = false;
template <>
constexpr bool IS_PAIRED<uint16_t> = true;

// Activations in fp32, in the order in which `load_pair` gives the weights.
template <bool PAIRED, class X>
void arrange(const X* x, float* out, long width) {
    long whole = width / STEP * STEP;
    for (long k = 0; k < whole; k += STEP)
        for (int i = 0; i < LANES; i++) {
            out[k + i] = read(x + k + (PAIRED ? 2 * i : i));
            out[k + LANES + i] = read(x + k + (PAIRED ? 2 * i + 1 : LANES + i));
        }
    for (long k = whole; k < width; k++) out[k] = read(x + k);
}

// ROWS rows of x times OUTS rows of w; the results of the first `rows` are written.
template <int ROWS, int OUTS, class W, class X>
INLINE void multiply(const float* x, const W* w, const W* bias, X* y, long rows, long width,
                     long outs) {
    floats totals[ROWS][OUTS] = {};
    long whole = width / STEP * STEP;
    for (long k = 0; k < whole; k += STEP) {
        floats a[OUTS], b[OUTS];
#pragma GCC unroll 4
        for (int o = 0; o < OUTS; o++) {
            fetch_ahead(w + o * width + k);
            if (sizeof(W) == 4) fetch_ahead(w + o * width + k + LANES);
            load_pair(w + o * width + k, a[o], b[o]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const float* at = x + r * width + k;
            floats c = load<floats>(at), d = load<floats>(at + LANES);
            hold(c), hold(d);
#pragma GCC unroll 4
            for (int o = 0; o < OUTS; o++) totals[r][o] += a[o] * c;
#pragma GCC unroll 4
            for (int o = 0; o < OUTS; o++) totals[r][o] += b[o] * d;
        }
    }
    for (int r = 0; r < ROWS && r < rows; r++)
        for (int o = 0; o < OUTS; o++) {
            float total = sum(totals[r][o]);
            for (long k = whole; k < width; k++) total += x[r * width + k] * read(w + o * width + k);
            write(y + r * outs + o, bias ? total + read(bias + o) : total);
        }
}

template <int ROWS, class W, class X>
void multiply_part(const float* x, const W* w, const W* bias, X* y, long rows, long width, long outs,
                   Range part) {
    constexpr int OUTS = ROWS <= 4 ? 4 : 3;  // so that the totals fit the registers
    long o = part.begin;
    for (; o + OUTS <= part.end; o += OUTS)
        multiply<ROWS, OUTS>(x, w + o * width, bias ? bias + o : bias, y + o, rows, width, outs);
    for (; o < part.end; o++)
        multiply<ROWS, 1>(x, w + o * width, bias ? bias + o : bias, y + o, rows, width, outs);
}

template <class W, class X>
void apply(const X* x, const W* w, const W* bias, X* y, long rows, long width, long outs, int threads) {
    long padded = (rows + MOST_ROWS - 1) / MOST_ROWS * MOST_ROWS;
    Scratch<float> arranged(padded * width);
    for (long r = 0; r < rows; r++)
        arrange<IS_PAIRED<W>>(x + r * width, &arranged[r * width], width);
    // What lies there from earlier calls may be denormal numbers, with which products take a hundred times as long.
    if (rows > 2) memset(&arranged[rows * width], 0, (padded - rows) * width * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        Range part = part_of(outs, 12, omp_get_thread_num(), omp_get_num_threads());
        for (long o = part.begin; o < part.end; o += CHUNK)
            for (long r = 0; r < rows; r += MOST_ROWS) {
                long left = rows - r, end = o + CHUNK < part.end ? o + CHUNK : part.end;
                auto* run = left == 1   ? multiply_part<1, W, X>
                            : left == 2 ? multiply_part<2, W, X>
                            : left <= 4 ? multiply_part<4, W, X>
                                        : multiply_part<8, W, X>;
                run(&arranged[r * width], w, bias, y + r * outs, left, width, outs, {o, end});
            }
    }
}

}  // namespace

EXPORT void linear_fp32(const float* x, const float* w, const float* bias, float* y, long rows,
                        long width, long outs, int threads) {
    apply(x, w, bias, y, rows, width, outs, threads);
}

EXPORT void linear_bf16_fp32(const float* x, const uint16_t* w, const uint16_t* bias, float* y,
                             long rows, long width, long outs, int threads) {
    apply(x, w, bias, y, rows, width, outs, threads);
}

EXPORT void linear_fp16_fp32(const float* x, const Half* w, const Half* bias, float* y, long rows,
                             long width, long outs, int threads) {
    apply(x, w, bias, y, rows, width, outs, threads);
}

EXPORT void linear_bf16(const uint16_t* x, const uint16_t* w, const uint16_t* bias, uint16_t* y,
                        long rows, long width, long outs, int threads) {
    apply(x, w, bias, y, rows, width, outs, threads);
}
