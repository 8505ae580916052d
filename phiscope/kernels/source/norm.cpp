// LayerNorm: (x - mean) / sqrt(variance + eps) * weight + bias, each row by itself, in fp32.
#include "exports.h"

namespace {

struct Moments {
    float mean, variance;
};

template <class X>
INLINE floats load_rest(const X* x, long count) {
    float rest[LANES] = {};
    for (long i = 0; i < count; i++) rest[i] = read(x + i);
    return load<floats>(rest);
}

// The mean is corrected by what is left of the differences' sum, which rounding makes of a large mean.
template <class X>
Moments measure(const X* x, long width) {
    long whole = width / LANES * LANES;
    floats total = load_rest(x + whole, width - whole);
    for (long k = 0; k < whole; k += LANES) total += load_floats(x + k);
    float mean = sum(total) / float(width);
    floats differences{}, squares{};
    for (long k = 0; k < whole; k += LANES) {
        floats off = load_floats(x + k) - mean;
        differences += off;
        squares += off * off;
    }
    float difference = sum(differences), square = sum(squares);
    for (long k = whole; k < width; k++) {
        float off = read(x + k) - mean;
        difference += off;
        square += off * off;
    }
    float correction = difference / float(width);
    float variance = square / float(width) - correction * correction;
    return {mean + correction, variance < 0 ? 0 : variance};  // what is no number stays none
}

template <class X, class W>
void norm_row(const X* x, const W* weight, const W* bias, X* y, long width, float eps) {
    auto [mean, variance] = measure(x, width);
    float factor = 1 / __builtin_sqrtf(variance + eps);
    long k = 0;
    for (; k + LANES <= width; k += LANES)
        store_floats(y + k, (load_floats(x + k) - mean) * factor * load_floats(weight + k) + load_floats(bias + k));
    for (; k < width; k++) write(y + k, (read(x + k) - mean) * factor * read(weight + k) + read(bias + k));
}

template <class X, class W>
void norm(const X* x, const W* weight, const W* bias, X* y, long rows, long width, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (rows > 16)
    for (long r = 0; r < rows; r++) norm_row(x + r * width, weight, bias, y + r * width, width, eps);
}

}  // namespace

EXPORT void norm_fp32(const float* x, const float* weight, const float* bias, float* y, long rows, long width,
                      float eps, int threads) {
    norm(x, weight, bias, y, rows, width, eps, threads);
}

EXPORT void norm_bf16_fp32(const float* x, const uint16_t* weight, const uint16_t* bias, float* y, long rows,
                           long width, float eps, int threads) {
    norm(x, weight, bias, y, rows, width, eps, threads);
}

EXPORT void norm_fp16_fp32(const float* x, const Half* weight, const Half* bias, float* y, long rows, long width,
                           float eps, int threads) {
    norm(x, weight, bias, y, rows, width, eps, threads);
}

EXPORT void norm_bf16(const uint16_t* x, const uint16_t* weight, const uint16_t* bias, uint16_t* y, long rows,
                      long width, float eps, int threads) {
    norm(x, weight, bias, y, rows, width, eps, threads);
}
