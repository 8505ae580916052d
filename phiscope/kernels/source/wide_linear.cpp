// y = x w^T + bias for many rows of fp32 x and narrow w, bf16 or fp16 as it lies in the checkpoint, or
// panels of 8 bits: fp32 arithmetic throughout. Weights are widened block by block, while they are in the
// cache. Few rows of x times panels wait for memory, and are multiplied as the panels come.
#include <omp.h>

#include "exports.h"
#include "panels.h"

namespace {

constexpr int ROWS = BYTES == 64 ? 6 : 2;  // of a tile
constexpr int WIDTH = 64;                  // outputs of a tile
constexpr int VECTORS = WIDTH / LANES;
constexpr int BLOCK = 516;  // rows, and inputs, that are multiplied with one block of weights
constexpr int DEPTH = 512;

// Turns LANES rows of a square around, in place: in each round pairs of rows swap what is off their
// diagonal, in pieces of 1, 2, 4 ... elements.
INLINE void transpose(ints (&rows)[LANES]) {
    for (int half = 1; half < LANES; half *= 2) {
        ints low, high;
        for (int i = 0; i < LANES; i++) {
            low[i] = i & half ? i - half + LANES : i;
            high[i] = i & half ? i + LANES : i + half;
        }
        for (int i = 0; i < LANES; i++)
            if (!(i & half)) {
                ints a = rows[i], b = rows[i + half];
                rows[i] = __builtin_shuffle(a, b, low);
                rows[i + half] = __builtin_shuffle(a, b, high);
            }
    }
}

// The numbers in the lower and in the upper halves of lanes.
INLINE floats lower(ints pairs, const uint16_t*) { return (floats)(pairs << 16); }
INLINE floats upper(ints pairs, const uint16_t*) { return (floats)(pairs & spread(int32_t(0xFFFF0000u))); }
INLINE floats lower(ints pairs, const Half*) { return widen_halves(pairs); }
INLINE floats upper(ints pairs, const Half*) { return widen_halves(pairs >> 16); }

// T is uint16_t for bf16, or Half.
template <class T>
struct Narrow {
    const T* w;
    const T* bias;
    long width, outs;

    float bias_of(long o) const { return bias ? read(bias + o) : 0; }
    float scale_of(long) const { return 1; }

    floats finish(floats total, long o) const { return bias ? total + load_floats(bias + o) : total; }

    // Outputs from `o` on, inputs from `k` to `k + depth`: floats (depth, WIDTH), zero where none is.
    void expand(long o, long k, long depth, float* room) const {
        for (int from = 0; from < WIDTH; from += LANES)
            for (long begin = 0; begin < depth; begin += 2 * LANES)
                expand_square(o + from, k + begin, depth - begin, room + begin * WIDTH + from);
    }

    // Two inputs lie in each lane, the even one in its lower half.
    INLINE void expand_square(long o, long k, long depth, float* out) const {
        ints rows[LANES];
        for (int i = 0; i < LANES; i++) rows[i] = o + i < outs ? load_part(w + (o + i) * width + k, depth) : ints{};
        transpose(rows);
        for (int i = 0; i < LANES; i++) {
            if (2 * i < depth) store(out + 2 * i * WIDTH, lower(rows[i], w));
            if (2 * i + 1 < depth) store(out + (2 * i + 1) * WIDTH, upper(rows[i], w));
        }
    }

    INLINE ints load_part(const T* from, long count) const {
        if (count >= 2 * LANES) return load<ints>(from);
        ints part{};
        memcpy(&part, from, 2 * count);
        return part;
    }
};

struct Int8 {
    const uint8_t* w;
    const float* scales;
    const float* bias;
    long width, outs;  // the panels' width, which may be larger than that of x

    float bias_of(long o) const { return bias ? bias[o] : 0; }
    float scale_of(long o) const { return scales[o]; }

    floats finish(floats total, long o) const {
        total *= load<floats>(scales + o);
        return bias ? total + load<floats>(bias + o) : total;
    }

    // Input `i` of the four of each lane, as numbers without their scale.
    static inline __attribute__((always_inline)) floats number(ints four, int i) {
        ints signed_bytes = four ^ spread(int32_t(0x80808080u));
        return __builtin_convertvector(signed_bytes << (24 - 8 * i) >> 24, floats);
    }

    INLINE ints load_four(long panel, long k, int part) const {
        return load<ints>(w + (panel * width + k) * OUTS + part * BYTES);
    }

    void expand(long o, long k, long depth, float* room) const {
        for (int j = 0; j < VECTORS; j++)
            for (long i = 0; i < depth; i++) {
                ints four = load_four(o / OUTS + j / PARTS, (k + i) / 4 * 4, j % PARTS);
                store(room + i * WIDTH + j * LANES, number(four, (k + i) % 4));
            }
    }
};

// Sums of some inputs to one row of y, which holds those of earlier inputs until all were added.
template <class W>
INLINE void put(const W& w, floats total, bool is_first, bool is_last, float* y, long o) {
    if (o + LANES <= w.outs) {
        if (!is_first) total += load<floats>(y + o);
        return store(y + o, is_last ? w.finish(total, o) : total);
    }
    float parts[LANES];
    store(parts, total);
    for (int i = 0; o + i < w.outs; i++) {
        float sum = parts[i] + (is_first ? 0 : y[o + i]);
        y[o + i] = is_last ? sum * w.scale_of(o + i) + w.bias_of(o + i) : sum;
    }
}

// R rows of x times a block of weights, added to what `y` has of earlier inputs.
template <int R, class W>
INLINE void multiply_tile(const W& w, const float* x, long x_width, const float* room, long k, long depth,
                          float* y, long o) {
    floats totals[R][VECTORS] = {};
    for (long i = 0; i < depth; i++) {
        floats b[VECTORS];
        for (int j = 0; j < VECTORS; j++) b[j] = load<floats>(room + i * WIDTH + j * LANES);
        for (int r = 0; r < R; r++) {
            floats one = spread(x[r * x_width + k + i]);
            hold(one);
            for (int j = 0; j < VECTORS; j++) totals[r][j] += one * b[j];
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < VECTORS; j++)
            put(w, totals[r][j], k == 0, k + depth >= x_width, y + r * w.outs, o + j * LANES);
}

template <class W>
void apply(const W& w, const float* x, float* y, long rows, long x_width, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Range part = part_of(w.outs, WIDTH, omp_get_thread_num(), omp_get_num_threads());
        Scratch<float> room(WIDTH * DEPTH);
        long block = even_block(rows, BLOCK, ROWS);
        for (long begin = 0; begin < rows; begin += block)
            for (long k = 0; k < x_width; k += DEPTH)
                for (long o = part.begin; o < part.end; o += WIDTH) {
                    long end = begin + block < rows ? begin + block : rows, r = begin;
                    long depth = x_width - k < DEPTH ? x_width - k : DEPTH;
                    w.expand(o, k, depth, &room[0]);
                    for (; r + ROWS <= end; r += ROWS)
                        multiply_tile<ROWS>(w, x + r * x_width, x_width, &room[0], k, depth, y + r * w.outs, o);
                    for (; r < end; r++)
                        multiply_tile<1>(w, x + r * x_width, x_width, &room[0], k, depth, y + r * w.outs, o);
                }
    }
}

// R rows times a panel, as it comes from memory.
template <int R>
void multiply_panels(const Int8& w, const float* x, float* y, long rows, long x_width, Range panels) {
    for (long p = panels.begin; p < panels.end; p++)
        for (int part = 0; part < PARTS; part++) {
            floats totals[R] = {};
            for (long k = 0; k < x_width; k += 4) {
                ints four = w.load_four(p, k, part);
                for (int i = 0; i < 4 && k + i < x_width; i++) {
                    floats numbers = Int8::number(four, i);
                    for (int r = 0; r < R; r++)
                        totals[r] += numbers * x[(r < rows ? r : 0) * x_width + k + i];
                }
            }
            for (int r = 0; r < R && r < rows; r++)
                for (int i = 0; i < LANES; i++) {
                    long o = p * OUTS + part * LANES + i;
                    if (o < w.outs) y[r * w.outs + o] = totals[r][i] * w.scale_of(o) + w.bias_of(o);
                }
        }
}

void apply_few(const Int8& w, const float* x, float* y, long rows, long x_width, int threads) {
#pragma omp parallel num_threads(threads)
    {
        Range part = part_of((w.outs + OUTS - 1) / OUTS, 1, omp_get_thread_num(), omp_get_num_threads());
        for (long r = 0; r < rows; r += 8) {
            long left = rows - r;
            auto* run = left == 1   ? multiply_panels<1>
                        : left == 2 ? multiply_panels<2>
                        : left <= 4 ? multiply_panels<4>
                                    : multiply_panels<8>;
            run(w, x + r * x_width, y + r * w.outs, left, x_width, part);
        }
    }
}

}  // namespace

EXPORT void linear_bf16_wide(const float* x, const uint16_t* w, const uint16_t* bias, float* y, long rows,
                             long width, long outs, int threads) {
    apply(Narrow<uint16_t>{w, bias, width, outs}, x, y, rows, width, threads);
}

EXPORT void linear_fp16_wide(const float* x, const Half* w, const Half* bias, float* y, long rows, long width,
                             long outs, int threads) {
    apply(Narrow<Half>{w, bias, width, outs}, x, y, rows, width, threads);
}

EXPORT void linear_int8_wide(const float* x, const uint8_t* w, const float* scales, const float* bias,
                             float* y, long rows, long x_width, long width, long outs, int threads) {
    Int8 weights{w, scales, bias, width, outs};
    (rows <= 16 ? apply_few : apply<Int8>)(weights, x, y, rows, x_width, threads);
}
