// Rows of a weight as integers in panels, bit for bit as rounding.py defines them; what the panels
// are says integer_linear.cpp.
#pragma GCC optimize("fp-contract=off")
#include <omp.h>

#include "vectors.h"

namespace {

constexpr int OUTS = 16;   // of a panel
constexpr int PANELS = 4;  // whose number is filled up to a multiple of it
constexpr int GROUP = 32;  // inputs with a common multiplier
constexpr int MOST = 16;   // the largest multiplier
constexpr uint32_t INFINITE = 0x7F800000;

typedef uint8_t bytes __attribute__((vector_size(LANES)));
typedef float quarter __attribute__((vector_size(16)));

// To the nearest, ties to even, below 2^22: the constant leaves no bits for a fraction.
INLINE floats round_all(floats x) {
    const floats constant = spread(12582912.0f);
    return (x + constant) - constant;
}

INLINE floats clamp(floats x, float low, float high) {
    x = x < low ? spread(low) : x;
    return x > high ? spread(high) : x;
}

// A weight's row in fp32, filled up with zeros, and its scale.
struct Row {
    float* x;
    long width;
    float scale;
    bool is_finite;

    template <class T>
    Row(const T* from, long from_width, long width, float largest_integer, float* room)
        : x(room), width(width) {
        long k = 0;
        for (; k + LANES <= from_width; k += LANES) store(x + k, load_floats(from + k));
        for (; k < width; k++) x[k] = k < from_width ? read(from + k) : 0.0f;
        uint32_t most = 0;  // as integers, infinities and NaN are larger than numbers
        for (long k = 0; k < width; k++) {
            uint32_t bits;
            memcpy(&bits, x + k, 4);
            bits &= 0x7FFFFFFF;
            most = bits > most ? bits : most;
        }
        memcpy(&scale, &most, 4);
        scale /= largest_integer;
        is_finite = most < INFINITE;
        divide(is_finite && scale > 0 ? scale : 1.0f);
    }

  private:
    // In units of the scale, or zeros where that is no number.
    void divide(float scale) {
        for (long k = 0; k < width; k += LANES)
            store(x + k, is_finite ? load<floats>(x + k) / spread(scale) : floats{});
    }
};

void round_to_int8(const Row& row, uint8_t* out) {
    for (long k = 0; k < row.width; k += LANES) {
        floats q = round_all(clamp(load<floats>(row.x + k), -127, 127)) + spread(128.0f);
        store(out + k, __builtin_convertvector(__builtin_convertvector(q, ints), bytes));
    }
}

// The sum of squares of a group's errors, in an order that does not depend on the registers' width.
INLINE float sum_squares(const floats* errors) {
    floats squares[GROUP / LANES];
    for (int i = 0; i < GROUP / LANES; i++) squares[i] = errors[i] * errors[i];
    quarter parts[8];
    memcpy(parts, squares, sizeof parts);
    for (int i = 0; i < 4; i++) parts[i] += parts[i + 4];
    quarter total = parts[0];
    for (int i = 1; i < 4; i++) total += parts[i];
    return (total[0] + total[2]) + (total[1] + total[3]);
}

INLINE floats round_by(floats x, int multiplier) {
    return round_all(clamp(x * spread(1.0f / multiplier), -8, 7));
}

// A group's multiplier that errs least, the smallest of several.
uint8_t choose_multiplier(const float* x) {
    int chosen = 0;
    float least = 0;
    for (int m = 1; m <= MOST; m++) {
        floats errors[GROUP / LANES];
        for (int i = 0; i < GROUP / LANES; i++) {
            floats units = load<floats>(x + i * LANES);
            errors[i] = round_by(units, m) * spread(float(m)) - units;
        }
        float error = sum_squares(errors);
        if (chosen == 0 || error < least) chosen = m, least = error;
    }
    return uint8_t(chosen);
}

void round_to_int4(const float* x, int multiplier, uint8_t* out) {
    for (int k = 0; k < GROUP; k += LANES) {
        floats q = round_by(load<floats>(x + k), multiplier) + spread(8.0f);
        store(out + k, __builtin_convertvector(__builtin_convertvector(q, ints), bytes));
    }
}

// Where a matrix comes from and goes to; `width` is filled up to whole groups.
template <class T>
struct Job {
    const T* weight;
    float* scales;
    long rows, from_width, width;

    // Runs `put(row, panel, output in it)` for all outputs, also those that fill up the last panels.
    template <class F>
    void run(float largest_integer, int threads, F put) const {
        long num_panels = (rows + PANELS * OUTS - 1) / (PANELS * OUTS) * PANELS;
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (long p = 0; p < num_panels; p++) {
            Scratch<float> room(width);
            for (int o = 0; o < OUTS; o++) {
                long r = p * OUTS + o;
                bool is_there = r < rows;
                Row row(weight + (is_there ? r * from_width : 0), is_there ? from_width : 0, width,
                        largest_integer, &room[0]);
                if (is_there) scales[r] = row.scale;
                put(row, p, o);
            }
        }
    }
};

template <class T>
void round_int8(Job<T> job, uint8_t* panels, int threads) {
    job.run(127, threads, [&](const Row& row, long p, int o) {
        Scratch<uint8_t> q(row.width);
        round_to_int8(row, &q[0]);
        uint8_t* out = panels + p * row.width * OUTS + 4 * o;
        for (long k = 0; k < row.width; k += 4) memcpy(out + k * OUTS, &q[k], 4);
    });
}

template <class T>
void round_int4(Job<T> job, uint8_t* panels, uint8_t* multipliers, int threads) {
    job.run(120, threads, [&](const Row& row, long p, int o) {
        long groups = row.width / GROUP;
        for (long g = 0; g < groups; g++) {
            alignas(64) uint8_t q[GROUP];
            uint8_t m = choose_multiplier(row.x + g * GROUP);
            round_to_int4(row.x + g * GROUP, m, q);
            multipliers[(p * groups + g) * OUTS + o] = m;
            uint8_t* out = panels + (p * groups + g) * GROUP * OUTS / 2 + 4 * o;
            for (int k = 0; k < GROUP; k += 8) {
                uint32_t low, high;
                memcpy(&low, q + k, 4);
                memcpy(&high, q + k + 4, 4);
                low |= high << 4;
                memcpy(out + k * OUTS / 2, &low, 4);
            }
        }
    });
}

}  // namespace

#define ROUNDING(SUFFIX, TYPE)                                                                      \
    EXPORT void round_int8_##SUFFIX(const TYPE* weight, uint8_t* panels, float* scales, long rows,  \
                                    long from_width, long width, int threads) {                     \
        round_int8(Job<TYPE>{weight, scales, rows, from_width, width}, panels, threads);            \
    }                                                                                               \
    EXPORT void round_int4_##SUFFIX(const TYPE* weight, uint8_t* panels, uint8_t* multipliers,      \
                                    float* scales, long rows, long from_width, long width,          \
                                    int threads) {                                                  \
        round_int4(Job<TYPE>{weight, scales, rows, from_width, width}, panels, multipliers,         \
                   threads);                                                                        \
    }

// Panels are filled up to a multiple of four, `width` to a multiple of 32; the weight is as it is.
ROUNDING(fp32, float)
ROUNDING(bf16, uint16_t)
ROUNDING(fp16, Half)
