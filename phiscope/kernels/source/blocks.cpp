// Parallel blocks for few rows in one call: x + attention(norm(x)) + mlp(norm(x)) by the kernels that
// their steps would call one by one, in the same order, so that every bit is theirs. What lies between
// the calls costs more than a tenth of a step on small weights.
#include "exports.h"

namespace {

// As fused.py counts them: of weights and activations.
enum Kind : long { FP32, BF16_FP32, FP16_FP32, BF16, INT8, INT8_WIDE, INT4 };

// As fused.py lays them out.
struct Linear {
    long kind, bytes, width, padded, outs;  // `padded`: the width of integers' panels
    const void* parts[4];                   // as the kernels take them
};

struct Block {
    long layer, kind;  // the norm's kind
    double eps;
    const void *norm_weight, *norm_bias;
    long heads, kv_heads, dim;
    Linear qkv, dense, fc1, fc2;
};

template <class T>
struct Step {
    const T* x;
    T* outs;  // of one block after the other
    const float *cos, *sin;
    T* cache;
    const int64_t* places;
    const void* sequences;
    long layer_stride, values_stride;  // in the cache: from layer to layer, from keys to values
    long num_blocks, rows, num_sequences, num_keys, half;
};

constexpr long THREAD_BYTES = 1 << 18;  // what is done sooner than threads would come together

int threads_for(long bytes, int threads) { return bytes > THREAD_BYTES ? threads : 1; }

void multiply(const Linear& l, const float* x, float* y, long rows, int threads) {
    auto [a, b, c, d] = l.parts;
    auto* integers = (const uint8_t*)a;
    threads = threads_for(l.bytes * rows, threads);
    switch (l.kind) {
        case FP32:
            return linear_fp32(x, (const float*)a, (const float*)b, y, rows, l.width, l.outs, threads);
        case BF16_FP32:
            return linear_bf16_fp32(x, (const uint16_t*)a, (const uint16_t*)b, y, rows, l.width, l.outs, threads);
        case FP16_FP32:
            return linear_fp16_fp32(x, (const Half*)a, (const Half*)b, y, rows, l.width, l.outs, threads);
        case INT8:
            return linear_int8(x, integers, (const float*)b, (const float*)c, y, rows, l.width, l.padded, l.outs,
                               threads);
        case INT8_WIDE:
            return linear_int8_wide(x, integers, (const float*)b, (const float*)c, y, rows, l.width, l.padded,
                                    l.outs, threads);
        case INT4:
            return linear_int4(x, integers, (const uint8_t*)b, (const float*)c, (const float*)d, y, rows, l.width,
                               l.padded, l.outs, threads);
    }
}

void multiply(const Linear& l, const uint16_t* x, uint16_t* y, long rows, int threads) {
    linear_bf16(x, (const uint16_t*)l.parts[0], (const uint16_t*)l.parts[1], y, rows, l.width, l.outs,
                threads_for(l.bytes * rows, threads));
}

void norm(const Block& b, const float* x, float* y, long rows) {
    long width = b.qkv.width;
    const void *w = b.norm_weight, *bias = b.norm_bias;
    float eps = float(b.eps);
    switch (b.kind) {
        case FP32:
            return norm_fp32(x, (const float*)w, (const float*)bias, y, rows, width, eps, 1);
        case BF16_FP32:
            return norm_bf16_fp32(x, (const uint16_t*)w, (const uint16_t*)bias, y, rows, width, eps, 1);
        case FP16_FP32:
            return norm_fp16_fp32(x, (const Half*)w, (const Half*)bias, y, rows, width, eps, 1);
    }
}

void norm(const Block& b, const uint16_t* x, uint16_t* y, long rows) {
    norm_bf16(x, (const uint16_t*)b.norm_weight, (const uint16_t*)b.norm_bias, y, rows, b.qkv.width,
              float(b.eps), 1);
}

#define FOR_BOTH(NAME)                                                          \
    template <class... Rest>                                                    \
    void NAME(float* first, Rest... rest) { NAME##_fp32(first, rest...); }      \
    template <class... Rest>                                                    \
    void NAME(uint16_t* first, Rest... rest) { NAME##_bf16(first, rest...); }
FOR_BOTH(place)
FOR_BOTH(attend)
FOR_BOTH(gelu)

// The sum is rounded where the steps round it.
template <class T>
void add_all(const T* attention, const T* mlp, const T* x, T* out, long count) {
    for (long i = 0; i < count; i++) {
        T both;
        write(&both, read(attention + i) + read(mlp + i));
        write(out + i, read(&both) + read(x + i));
    }
}

template <class T>
void run(const Block& b, const Step<T>& s, const T* x, T* out, int threads) {
    long rows = s.rows, hidden = b.qkv.width, joint = b.qkv.outs, width = b.heads * b.dim;
    long kv_width = b.kv_heads * b.dim, inner = b.fc1.outs;
    Scratch<T> normed(rows * hidden), heads(rows * joint), z(rows * width), attention(rows * hidden);
    Scratch<T> wide(rows * inner), mlp(rows * hidden);
    T *q = &heads[0], *k = q + width, *v = k + kv_width;
    T *keys = s.cache + b.layer * s.layer_stride, *values = keys + s.values_stride;
    norm(b, x, &normed[0], rows);
    multiply(b.qkv, &normed[0], q, rows, threads);
    place(q, k, (const T*)v, s.cos, s.sin, keys, values, s.places, rows, joint, joint, joint, b.heads,
          b.kv_heads, b.dim, s.half, 1);
    attend(q, (const T*)keys, (const T*)values, &z[0], s.sequences, s.num_sequences, joint, b.heads,
           b.kv_heads, b.dim, threads_for(2 * s.num_keys * kv_width * long(sizeof(T)), threads));
    multiply(b.dense, &z[0], &attention[0], rows, threads);
    multiply(b.fc1, &normed[0], &wide[0], rows, threads);
    gelu(&wide[0], rows * inner, threads_for(rows * inner * long(sizeof(T)), threads));
    multiply(b.fc2, &wide[0], &mlp[0], rows, threads);
    add_all(&attention[0], &mlp[0], x, out, rows * hidden);
}

template <class T>
void run_all(const Block* blocks, const Step<T>& s, int threads) {
    long size = s.rows * blocks[0].qkv.width;
    for (long i = 0; i < s.num_blocks; i++)
        run(blocks[i], s, i ? s.outs + (i - 1) * size : s.x, s.outs + i * size, threads);
}

}  // namespace

EXPORT void blocks_fp32(const void* blocks, const void* step, int threads) {
    run_all((const Block*)blocks, *(const Step<float>*)step, threads);
}

EXPORT void blocks_bf16(const void* blocks, const void* step, int threads) {
    run_all((const Block*)blocks, *(const Step<uint16_t>*)step, threads);
}
