// Vectors as wide as the machine's registers, written with the compiler's own vector types, so that
// one text serves AVX-512, AVX2 and the rest. "Lanes" are 32-bit elements of a vector.
#pragma once

#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX2__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif
constexpr int LANES = BYTES / 4;

typedef float floats __attribute__((vector_size(BYTES)));
typedef int32_t ints __attribute__((vector_size(BYTES)));
typedef int16_t shorts __attribute__((vector_size(BYTES)));
typedef uint16_t ushorts __attribute__((vector_size(BYTES)));

#define INLINE inline __attribute__((always_inline))
#define EXPORT extern "C" __attribute__((visibility("default")))

template <class V>
INLINE V load(const void* from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

template <class V>
INLINE void store(void* to, V v) {
    memcpy(to, &v, sizeof v);
}

// Asks for what a stream of weights will read next: with as many streams as these kernels have, the
// processor by itself asks too late. Beyond the weights' end it asks in vain, which does no harm.
INLINE void fetch_ahead(const void* stream, long distance = 2048) {
    __builtin_prefetch((const char*)stream + distance);
}

// Keeps a loaded vector in its register, where the compiler would load it again for every use.
template <class V>
INLINE void hold([[maybe_unused]] V& v) {
#if defined(__AVX512F__)
    asm("" : "+v"(v));
#elif defined(__AVX2__)
    asm("" : "+x"(v));
#endif
}

// Minus zero is what leaves every number as it is, and so costs nothing.
INLINE floats spread(float x) { return x - floats{}; }

INLINE ints spread(int32_t x) { return ints{} + x; }

INLINE float sum(floats v) {
    typedef float quarter __attribute__((vector_size(16)));
    quarter parts[BYTES / 16];
    memcpy(parts, &v, sizeof v);
    for (int i = 1; i < BYTES / 16; i++) parts[0] += parts[i];
    return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

// bfloat16 is the upper half of a float.
INLINE float from_bf16(uint16_t x) {
    uint32_t bits = uint32_t(x) << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

// To the nearest, ties to even; NaN stays NaN.
INLINE uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x != x) return 0x7FC0;
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// IEEE's half precision: with the exponent's bits in their place, and 112 too small.
struct Half {
    uint16_t bits;
};

INLINE float read(const float* x) { return *x; }
INLINE float read(const uint16_t* x) { return from_bf16(*x); }
INLINE float read(const Half* x) {
    uint32_t rest = uint32_t(x->bits & 0x7FFF) << 13, sign = uint32_t(x->bits & 0x8000) << 16;
    float y;
    memcpy(&y, &rest, 4);
    y *= 0x1p112f;
    memcpy(&rest, &y, 4);
    if ((x->bits & 0x7C00) == 0x7C00) rest |= 0x7F800000;
    rest |= sign;
    memcpy(&y, &rest, 4);
    return y;
}
INLINE void write(float* y, float x) { *y = x; }
INLINE void write(uint16_t* y, float x) { *y = to_bf16(x); }

// Memory for one call, on the borders of cache lines. A thread keeps it for its next calls: fresh
// memory would be cleared page by page, again and again.
class Pool {
  public:
    struct Piece {
        void* data;
        size_t size;
    };

    Piece take(size_t size) {
        for (size_t i = 0; i < free.size(); i++)
            if (free[i].size >= size && free[i].size <= 4 * size + 4096) {
                Piece piece = free[i];
                free[i] = free.back();
                free.pop_back();
                return piece;
            }
        return {operator new(size, std::align_val_t(64)), size};
    }

    void give(Piece piece) {
        if (free.size() < 16)
            free.push_back(piece);
        else
            operator delete(piece.data, std::align_val_t(64));
    }

    ~Pool() {
        for (Piece piece : free) operator delete(piece.data, std::align_val_t(64));
    }

    static Pool& of_thread() {
        static thread_local Pool pool;
        return pool;
    }

  private:
    std::vector<Piece> free;
};

template <class T>
class Scratch {
  public:
    explicit Scratch(long count) : piece(Pool::of_thread().take(count * sizeof(T))) {}
    ~Scratch() { Pool::of_thread().give(piece); }
    Scratch(const Scratch&) = delete;
    T& operator[](long i) { return ((T*)piece.data)[i]; }

  private:
    Pool::Piece piece;
};

// As many floats as a vector holds.
INLINE floats load_floats(const float* from) { return load<floats>(from); }
INLINE floats load_floats(const uint16_t* from) {
    typedef uint16_t halves __attribute__((vector_size(BYTES / 2)));
    return (floats)(__builtin_convertvector(load<halves>(from), ints) << 16);
}

// Half precision in the lower halves of lanes; what is in the upper ones does not matter.
INLINE floats widen_halves(ints all) {
    ints rest = (ints)((floats)((all & 0x7FFF) << 13) * spread(0x1p112f));
    ints special = (all & 0x7C00) == 0x7C00;
    return (floats)(rest | (special & 0x7F800000) | (all & 0x8000) << 16);
}

INLINE floats load_floats(const Half* from) {
#if defined(__AVX512F__)
    return (floats)_mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__AVX2__) && defined(__F16C__)
    return (floats)_mm256_cvtph_ps(load<__m128i>(from));
#else
    typedef uint16_t halves __attribute__((vector_size(BYTES / 2)));
    return widen_halves(__builtin_convertvector(load<halves>(from), ints));
#endif
}

INLINE void store_floats(float* to, floats v) { store(to, v); }
INLINE void store_floats(uint16_t* to, floats v) {
    for (int i = 0; i < LANES; i++) to[i] = to_bf16(v[i]);
}

// The part of `count` things that one of `num_threads` threads does, in multiples of `step`.
struct Range {
    long begin, end;
};

INLINE Range part_of(long count, long step, int thread, int num_threads) {
    long steps = (count + step - 1) / step;
    long begin = steps * thread / num_threads * step, end = steps * (thread + 1) / num_threads * step;
    return {begin, end < count ? end : count};
}

// How many rows to work on at a time: at most `most`, in even blocks of whole tiles.
INLINE long even_block(long rows, long most, long tile) {
    long blocks = (rows + most - 1) / most;
    long size = (rows + blocks - 1) / blocks;
    return (size + tile - 1) / tile * tile;
}
