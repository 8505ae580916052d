// y = x w^T + bias with integer weights: x is rounded to 8 bits, each row by a scale of its own, the
// sums are exact in 32 bits, and what comes out is fp32. A row's result depends on that row alone.
//
// Weights lie in panels of 16 outputs. 8 bits: for every 4 inputs 64 bytes, 4 for each output, each
// 128 more than the weight. 4 bits: for every 8 inputs 64 bytes, whose lower halves are inputs 0 to 3
// and whose upper halves are 4 to 7, each 8 more than the weight; and for every 32 inputs 16 bytes,
// each output's whole-numbered multiplier of 1 to 16. A weight is (half byte - 8) * multiplier, again
// a number of 8 bits. Every output has a scale.
#include <omp.h>

#include "exports.h"
#include "integers.h"
#include "panels.h"

namespace {

constexpr int GROUP = 32;             // inputs with a common multiplier
constexpr int FEW = 8;                // rows that are multiplied while the weights come from memory
constexpr int MOST_FEW = 2 * FEW;
constexpr int ROWS = 6, PANELS = 4;   // of a tile otherwise
constexpr int BLOCK = 516;            // rows that panels are multiplied with, tile after tile
constexpr int DEPTH = 2560;           // inputs of theirs that stay in the cache meanwhile

// x * factor to the nearest, ties to even: adding the constant leaves no bits for the fraction. The
// product is rounded before it, as in the definition, and so not fused with it.
__attribute__((optimize("fp-contract=off"), noinline)) void round_all(const float* x, float factor,
                                                                       int8_t* out, long count) {
    for (long k = 0; k < count; k++) {
        float shifted = x[k] * factor + 12582912.0f;
        int32_t bits;
        memcpy(&bits, &shifted, 4);
        out[k] = int8_t(bits);
    }
}

// Rows of activations in 8 bits, with what takes the weights' offsets away again.
struct Rows {
    long count, width;
    Scratch<int8_t> values;
    Scratch<int32_t> group_sums;
    Scratch<int32_t> sums;
    Scratch<float> scales;

    Rows(const float* x, long rows, long from_width, long width, [[maybe_unused]] int threads)
        : count(rows), width(width), values((rows + FEW) * width),
          group_sums((rows <= MOST_FEW ? rows + FEW : 0) * (width / GROUP)), sums(rows + FEW), scales(rows) {
#pragma omp parallel for num_threads(threads) if (rows > 4)
        for (long r = 0; r < rows; r++) round_row(x + r * from_width, r, from_width);
    }

    const int8_t* row(long r) { return &values[r * width]; }
    const int32_t* groups(long r) { return &group_sums[r * (width / GROUP)]; }

  private:
    void round_row(const float* x, long r, long from_width) {
        float most = largest(x, from_width);
        int8_t* out = &values[r * width];
        round_all(x, most > 0 ? 127.0f / most : 0.0f, out, from_width);
        memset(out + from_width, 0, width - from_width);
        scales[r] = most / 127.0f;
        int32_t total = 0;
        for (long k = 0; k < width; k++) total += out[k];
        sums[r] = total;
        if (count <= MOST_FEW) sum_groups(out, &group_sums[r * (width / GROUP)]);
    }

    // An infinity or NaN is larger than all numbers, and makes the scale and so the results one.
    float largest(const float* x, long count) {
        uint32_t most = 0;
        for (long k = 0; k < count; k++) {
            uint32_t bits;
            memcpy(&bits, x + k, 4);
            bits &= 0x7FFFFFFF;
            most = bits > most ? bits : most;
        }
        float value;
        memcpy(&value, &most, 4);
        return value;
    }

    // What takes away the offset of 8 of a group's half bytes.
    void sum_groups(const int8_t* x, int32_t* out) {
        for (long g = 0; g < width / GROUP; g++) {
            int32_t part = 0;
            for (int i = 0; i < GROUP; i++) part += x[g * GROUP + i];
            out[g] = -8 * part;
        }
    }
};

// Where results go: y[r][o] = total * the row's scale * the output's + bias.
struct Results {
    const float* scales;
    const float* bias;
    float* y;
    long outs;

    INLINE void put(ints total, float row_scale, long r, long o) const {
        if (o >= outs) return;
        floats scaled = __builtin_convertvector(total, floats) * row_scale;
        if (o + LANES <= outs) {
            scaled *= load<floats>(scales + o);
            if (bias) scaled += load<floats>(bias + o);
            return store(y + r * outs + o, scaled);
        }
        for (int i = 0; o + i < outs; i++)
            y[r * outs + o + i] = scaled[i] * scales[o + i] + (bias ? bias[o + i] : 0);
    }

    // Whole numbers on their way, in the place of results.
    INLINE void keep(ints total, long r, long o) const { memcpy(y + r * outs + o, &total, room(o)); }

    INLINE ints get(long r, long o) const {
        ints total{};
        memcpy(&total, y + r * outs + o, room(o));
        return total;
    }

    INLINE size_t room(long o) const { return o + LANES <= outs ? BYTES : o < outs ? 4 * (outs - o) : 0; }
};

struct Int8 {
    const uint8_t* w;
    long width;

    const uint8_t* panel(long p) const { return w + p * width * OUTS; }

    // The totals of R rows and P panels, from row `r` and panel `p` on.
    template <int R, int P>
    INLINE void multiply(Rows& x, long r, long p, ints (&totals)[R][P * PARTS]) const {
        for (int i = 0; i < R; i++)
            for (int j = 0; j < P * PARTS; j++) totals[i][j] = spread(-128 * x.sums[r + i]);
        const uint8_t* from = panel(p);
        const int8_t* a = x.row(r);
        for (long k = 0; k < width; k += 4) {
            ints b[P * PARTS];
            for (int j = 0; j < P * PARTS; j++) {
                const uint8_t* at = from + j / PARTS * width * OUTS + k * OUTS + j % PARTS * BYTES;
                fetch_ahead(at);
                b[j] = load<ints>(at);
            }
            for (int i = 0; i < R; i++) {
                ints four = spread_bytes(a + i * width + k);
                for (int j = 0; j < P * PARTS; j++)
                    totals[i][j] = add_byte_products(totals[i][j], b[j], four);
            }
        }
    }

    // Panels `p` to `p + PANELS`, inputs `k` to `k + count`: where they lie, and how far apart.
    const uint8_t* expand(long p, long k, long, uint8_t*, long* stride) const {
        *stride = width * OUTS;
        return panel(p) + k * OUTS;
    }
};

struct Int4 {
    const uint8_t* w;
    const uint8_t* multipliers;
    long width;

    const uint8_t* panel(long p) const { return w + p * width * OUTS / 2; }
    const uint8_t* multipliers_of(long p) const { return multipliers + p * (width / GROUP) * OUTS; }

    static INLINE ints load_multipliers(const uint8_t* from) {
        ints m;
        for (int i = 0; i < LANES; i++) m[i] = from[i];
        return m;
    }

    template <int R, int P>
    INLINE void multiply(Rows& x, long r, long p, ints (&totals)[R][P * PARTS]) const {
        for (int i = 0; i < R; i++)
            for (int j = 0; j < P * PARTS; j++) totals[i][j] = ints{};
        for (long g = 0; g < width / GROUP; g++) {
            ints parts[R][P * PARTS];
            for (int i = 0; i < R; i++)
                for (int j = 0; j < P * PARTS; j++) parts[i][j] = spread(x.groups(r + i)[g]);
            for (int s = 0; s < GROUP; s += 8) multiply_step<R, P>(x, r, p, g * GROUP + s, parts);
            for (int j = 0; j < P * PARTS; j++) {
                const uint8_t* at = multipliers_of(p + j / PARTS) + g * OUTS + j % PARTS * LANES;
                fetch_ahead(at, P * width / GROUP * OUTS);
                ints m = load_multipliers(at);
                for (int i = 0; i < R; i++)
                    totals[i][j] = add_short_products(totals[i][j], parts[i][j], m);
            }
        }
    }

    template <int R, int P>
    INLINE void multiply_step(Rows& x, long r, long p, long k, ints (&parts)[R][P * PARTS]) const {
        const ints low_half = spread(0x0F0F0F0F);
        ints low[P * PARTS], high[P * PARTS];
        for (int j = 0; j < P * PARTS; j++) {
            const uint8_t* at = panel(p + j / PARTS) + k * OUTS / 2 + j % PARTS * BYTES;
            fetch_ahead(at);
            ints both = load<ints>(at);
            low[j] = both & low_half;
            high[j] = both >> 4 & low_half;
        }
        for (int i = 0; i < R; i++) {
            const int8_t* a = x.row(r + i) + k;
            ints first = spread_bytes(a), second = spread_bytes(a + 4);
            for (int j = 0; j < P * PARTS; j++) {
                parts[i][j] = add_byte_products(parts[i][j], low[j], first);
                parts[i][j] = add_byte_products(parts[i][j], high[j], second);
            }
        }
    }

    // As 8-bit panels, in `room`.
    const uint8_t* expand(long p, long k, long count, uint8_t* room, long* stride) const {
        *stride = count * OUTS;
        for (int j = 0; j < PANELS * PARTS; j++)
            for (long g = k / GROUP; g < (k + count) / GROUP; g++) expand_group(p, j, g, room + j / PARTS * *stride - k * OUTS);
        return room;
    }

    INLINE void expand_group(long p, int j, long g, uint8_t* out) const {
        const uint8_t* at = multipliers_of(p + j / PARTS) + g * OUTS + j % PARTS * LANES;
        ints m = load_multipliers(at);
        ints factor = m | m << 16;                     // for two bytes at a time
        ints offset = spread(128) - 8 * m;
        offset |= offset << 8;
        offset |= offset << 16;
        for (int s = 0; s < GROUP; s += 8) {
            const uint8_t* from = panel(p + j / PARTS) + (g * GROUP + s) * OUTS / 2 + j % PARTS * BYTES;
            ints both = load<ints>(from);
            uint8_t* to = out + (g * GROUP + s) * OUTS + j % PARTS * BYTES;
            store(to, scaled(both & spread(0x0F0F0F0F), factor, offset));
            store(to + PANEL, scaled(both >> 4 & spread(0x0F0F0F0F), factor, offset));
        }
    }

    // Each byte times its factor plus the offset; no byte overflows into the next.
    static INLINE ints scaled(ints bytes, ints factor, ints offset) {
        shorts even = (shorts)(bytes & spread(0x00FF00FF)) * (shorts)factor;
        shorts odd = (shorts)((ushorts)bytes >> 8) * (shorts)factor;
        return ((ints)even | (ints)(odd << 8)) + offset;
    }
};

template <int R, int P, class W>
void multiply_part(Rows& x, const W& w, const Results& results, long r, Range panels) {
    long rows = x.count - r < R ? x.count - r : R;
    for (long p = panels.begin; p < panels.end; p += P) {
        ints totals[R][P * PARTS];
        w.template multiply<R, P>(x, r, p, totals);
        for (int i = 0; i < R && i < rows; i++)
            for (int j = 0; j < P * PARTS; j++)
                results.put(totals[i][j], x.scales[r + i], r + i, p * OUTS + j * LANES);
    }
}

// One tile: R rows times PANELS panels over `count` inputs, added to `sums`.
template <int R>
INLINE void multiply_tile(const int8_t* a, long width, const uint8_t* b, long stride, long count,
                          ints (&sums)[R][PANELS * PARTS]) {
    for (long k = 0; k < count; k += 4) {
        ints w[PANELS * PARTS];
        for (int j = 0; j < PANELS * PARTS; j++)
            w[j] = load<ints>(b + j / PARTS * stride + k * OUTS + j % PARTS * BYTES);
        for (int i = 0; i < R; i++) {
            ints four = spread_bytes(a + i * width + k);
            hold(four);
            for (int j = 0; j < PANELS * PARTS; j++)
                sums[i][j] = add_byte_products(sums[i][j], w[j], four);
        }
    }
}

// Rows from `r` on times panels from `p` on, over inputs from `k` on: blocks that stay in the cache.
// Until all inputs were added the whole numbers lie where the results will be.
struct Block {
    Rows& x;
    const Results& results;
    long r, rows, k, depth;

    template <class W>
    void multiply(const W& w, long p, uint8_t* room) {
        long stride, i = 0;
        const uint8_t* b = w.expand(p, k, depth, room, &stride);
        for (; i + ROWS <= rows; i += ROWS) multiply_rows<ROWS>(b, stride, r + i, p);
        for (; i < rows; i++) multiply_rows<1>(b, stride, r + i, p);
    }

  private:
    template <int R>
    INLINE void multiply_rows(const uint8_t* b, long stride, long from, long p) {
        ints sums[R][PANELS * PARTS];
        for (int n = 0; n < R; n++)
            for (int j = 0; j < PANELS * PARTS; j++)
                sums[n][j] = k ? results.get(from + n, p * OUTS + j * LANES)
                               : spread(-128 * x.sums[from + n]);
        multiply_tile<R>(x.row(from) + k, x.width, b, stride, depth, sums);
        for (int n = 0; n < R; n++)
            for (int j = 0; j < PANELS * PARTS; j++)
                if (k + depth < x.width)
                    results.keep(sums[n][j], from + n, p * OUTS + j * LANES);
                else
                    results.put(sums[n][j], x.scales[from + n], from + n, p * OUTS + j * LANES);
    }
};

template <class W>
void multiply_many(Rows& x, const W& w, const Results& results, Range panels) {
    Scratch<uint8_t> room(DEPTH * PANELS * OUTS);
    long block = even_block(x.count, BLOCK, ROWS);
    for (long r = 0; r < x.count; r += block)
        for (long k = 0; k < x.width; k += DEPTH) {
            long rows = x.count - r < block ? x.count - r : block;
            long depth = x.width - k < DEPTH ? x.width - k : DEPTH;
            for (long p = panels.begin; p < panels.end; p += PANELS)
                Block{x, results, r, rows, k, depth}.multiply(w, p, &room[0]);
        }
}

// PANELS1 to PANELS8: panels of a tile with so many rows, so that its totals fit the registers.
template <int PANELS1, int PANELS2, int PANELS4, int PANELS8, class W>
void apply(Rows& x, const W& w, const Results& results, int threads) {
    long num_panels = (results.outs + OUTS - 1) / OUTS;
#pragma omp parallel num_threads(threads)
    {
        Range part = part_of(num_panels, PANELS, omp_get_thread_num(), omp_get_num_threads());
        part.end = (part.end + PANELS - 1) / PANELS * PANELS;
        if (x.count > MOST_FEW) {
            multiply_many(x, w, results, part);
        } else {
            for (long p = part.begin; p < part.end; p += PANELS)
                for (long r = 0; r < x.count; r += FEW) {
                    long left = x.count - r;
                    auto* run = left == 1   ? multiply_part<1, PANELS1, W>
                                : left == 2 ? multiply_part<2, PANELS2, W>
                                : left <= 4 ? multiply_part<4, PANELS4, W>
                                            : multiply_part<8, PANELS8, W>;
                    run(x, w, results, r, {p, p + PANELS});
                }
        }
    }
}

}  // namespace

// Widths are multiples of 32, and the panels' number one of 4; `x_width` and `outs` need not be.
EXPORT void linear_int8(const float* x, const uint8_t* w, const float* scales, const float* bias,
                        float* y, long rows, long x_width, long width, long outs, int threads) {
    Rows rounded(x, rows, x_width, width, threads);
    apply<4, 4, 4, 2>(rounded, Int8{w, width}, Results{scales, bias, y, outs}, threads);
}

EXPORT void linear_int4(const float* x, const uint8_t* w, const uint8_t* multipliers,
                        const float* scales, const float* bias, float* y, long rows, long x_width,
                        long width, long outs, int threads) {
    Rows rounded(x, rows, x_width, width, threads);
    apply<4, 4, 2, 1>(rounded, Int4{w, multipliers, width}, Results{scales, bias, y, outs}, threads);
}
