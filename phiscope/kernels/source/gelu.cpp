// GELU by its tanh formula, in place: x / 2 * (1 + tanh(u)) = x / (1 + exp(-2 u)).
#include "exponential.h"
#include "exports.h"

namespace {

INLINE floats gelu(floats x) {
    floats u = x * (0.044715f * x * x + 1.0f) * 0.7978845608f;
    return x / (exp_of(-2.0f * u) + 1.0f);
}

template <class T>
void gelu_all(T* x, long count, int threads) {
    long whole = count / LANES * LANES;
#pragma omp parallel for num_threads(threads)
    for (long i = 0; i < whole; i += LANES) store_floats(x + i, gelu(load_floats(x + i)));
    for (long i = whole; i < count; i++) write(x + i, gelu(spread(read(x + i)))[0]);
}

}  // namespace

EXPORT void gelu_fp32(float* x, long count, int threads) { gelu_all(x, count, threads); }

EXPORT void gelu_bf16(uint16_t* x, long count, int threads) { gelu_all(x, count, threads); }
