// Causal attention of many sequences in one call: softmax(q k^T / sqrt(dim)) v, with scores, weights
// and sums in fp32. A sequence's result does not depend on the sequences beside it.
//
// Few queries wait for memory: the keys of neighbouring heads are read together, each once. Many
// queries are multiplied in tiles, on a head's keys and values laid out for that.
#include <cmath>
#include <vector>

#include "exponential.h"
#include "exports.h"

namespace {

constexpr int FEW = 4;                         // queries of a sequence that wait for memory
constexpr int HEADS = 4;                       // that are then worked on together
constexpr int PLACES = 32;                     // keys that are then taken at a time
constexpr int QUERIES = BYTES == 64 ? 6 : 2;   // of a tile otherwise
constexpr int KEYS = 4 * LANES;
constexpr int WIDEST = 5;                      // vectors of values of a tile

struct Shape {
    long stride, heads, kv_heads, dim;  // of queries' tokens; their results lie close together

    long row() const { return kv_heads * dim; }
    long kv_head(long head) const { return head / (heads / kv_heads); }
};

// `rows` new tokens from `first` on, whose `keys` keys begin at place `at`.
struct Sequence {
    int64_t first, rows, at, keys;

    long visible(long row) const { return keys - rows + row + 1; }
};

template <class T>
INLINE float dot(const float* q, const T* k, long dim) {
    floats total{};
    long d = 0;
    for (; d + LANES <= dim; d += LANES) total += load<floats>(q + d) * load_floats(k + d);
    float result = sum(total);
    for (; d < dim; d++) result += q[d] * read(k + d);
    return result;
}

template <class T>
INLINE void add_scaled(float* out, float weight, const T* v, long dim) {
    long d = 0;
    for (; d + LANES <= dim; d += LANES)
        store(out + d, load<floats>(out + d) + load_floats(v + d) * weight);
    for (; d < dim; d++) out[d] += weight * read(v + d);
}

INLINE long whole(long count, long step) { return (count + step - 1) / step * step; }

// Scores to weights, not yet divided by their sum, which is returned; up to `room` they become 0.
INLINE float exponentiate(float* scores, long count, long room) {
    for (long p = count; p < room; p++) scores[p] = -INFINITY;
    floats most = load<floats>(scores);
    for (long p = LANES; p < room; p += LANES) {
        floats other = load<floats>(scores + p);
        most = other > most ? other : most;
    }
    float peak = most[0];
    for (int i = 1; i < LANES; i++) peak = most[i] > peak ? most[i] : peak;
    floats total{};
    for (long p = 0; p < room; p += LANES) {
        floats score = load<floats>(scores + p);
        floats weights = score == -INFINITY ? floats{} : exp_of(score - peak);
        total += weights;
        store(scores + p, weights);
    }
    // A NaN or an infinity among the scores must not vanish in a comparison.
    return sum(total) + (peak - peak);
}

// One query, and heads `first` to `first + heads`.
template <class T>
void attend_few(const T* q, const T* keys, const T* values, T* out, long first, long heads, long count,
                const Shape& shape) {
    long dim = shape.dim, row = shape.row(), room = whole(count, LANES);
    Scratch<float> scores(HEADS * room), queries(HEADS * dim), sums(HEADS * dim);
    float scale = 1 / sqrtf(float(dim)), totals[HEADS];
    for (long i = 0; i < heads * dim; i++) queries[i] = read(q + first * dim + i) * scale, sums[i] = 0;
    for (long begin = 0; begin < count; begin += PLACES)
        for (long h = 0; h < heads; h++) {
            const T* k = keys + shape.kv_head(first + h) * dim;
            for (long p = begin; p < begin + PLACES && p < count; p++)
                scores[h * room + p] = dot(&queries[h * dim], k + p * row, dim);
        }
    for (long h = 0; h < heads; h++) totals[h] = exponentiate(&scores[h * room], count, room);
    for (long begin = 0; begin < count; begin += PLACES)
        for (long h = 0; h < heads; h++) {
            const T* v = values + shape.kv_head(first + h) * dim;
            for (long p = begin; p < begin + PLACES && p < count; p++)
                add_scaled(&sums[h * dim], scores[h * room + p], v + p * row, dim);
        }
    for (long h = 0; h < heads; h++)
        for (long d = 0; d < dim; d++) write(out + (first + h) * dim + d, sums[h * dim + d] / totals[h]);
}

// One head's keys, turned: (dim, room), and its values (room, columns); what is filled up is 0.
struct Head {
    long room, columns;
    Scratch<float> keys, values;

    Head(long count, long dim)
        : room(whole(count, KEYS)), columns(whole(dim, LANES)), keys(dim * room), values(room * columns) {}

    template <class T>
    void fill(const T* k, const T* v, long count, long dim, long row) {
        for (long d = 0; d < dim; d++)
            for (long p = count; p < room; p++) keys[d * room + p] = 0;
        for (long p = 0; p < room; p++)
            for (long d = 0; d < columns; d++)
                values[p * columns + d] = p < count && d < dim ? read(v + p * row + d) : 0;
        for (long begin = 0; begin < count; begin += LANES)
            for (long d = 0; d < dim; d++)
                for (long p = begin; p < begin + LANES && p < count; p++)
                    keys[d * room + p] = read(k + p * row + d);
    }
};

// Scores of a tile of queries (QUERIES, dim) for the keys from `p` on.
INLINE void score_tile(const float* queries, Head& head, long dim, long p, float* scores) {
    floats totals[QUERIES][4] = {};
    for (long d = 0; d < dim; d++) {
        floats k[4];
        for (int j = 0; j < 4; j++) k[j] = load<floats>(&head.keys[d * head.room + p + j * LANES]);
        for (int i = 0; i < QUERIES; i++) {
            floats one = spread(queries[i * dim + d]);
            hold(one);
            for (int j = 0; j < 4; j++) totals[i][j] += k[j] * one;
        }
    }
    for (int i = 0; i < QUERIES; i++)
        for (int j = 0; j < 4; j++) store(scores + i * head.room + p + j * LANES, totals[i][j]);
}

// Weighted sums of N vectors of values from column `from` on, for a tile of queries.
template <int N>
void weigh_tile(const float* weights, Head& head, long count, long from, float* out) {
    floats totals[QUERIES][N] = {};
    for (long p = 0; p < count; p++) {
        floats v[N];
        for (int j = 0; j < N; j++) v[j] = load<floats>(&head.values[p * head.columns + from + j * LANES]);
        for (int i = 0; i < QUERIES; i++) {
            float weight = weights[i * head.room + p];
            for (int j = 0; j < N; j++) totals[i][j] += v[j] * weight;
        }
    }
    for (int i = 0; i < QUERIES; i++)
        for (int j = 0; j < N; j++) store(out + i * head.columns + from + j * LANES, totals[i][j]);
}

void weigh(const float* weights, Head& head, long count, float* out) {
    for (long from = 0; from < head.columns;) {
        long left = (head.columns - from) / LANES;
        auto* run = left >= WIDEST ? weigh_tile<WIDEST>
                    : left == 4    ? weigh_tile<4>
                    : left == 3    ? weigh_tile<3>
                    : left == 2    ? weigh_tile<2>
                                   : weigh_tile<1>;
        run(weights, head, count, from, out);
        from += (left >= WIDEST ? WIDEST : left) * LANES;
    }
}

// All queries of a sequence, one head.
template <class T>
void attend_many(const T* q, const T* keys, const T* values, T* out, const Sequence& sequence, long h,
                 const Shape& shape) {
    long dim = shape.dim, size = shape.heads * dim, from = shape.kv_head(h) * dim;
    Head head(sequence.keys, dim);
    head.fill(keys + from, values + from, sequence.keys, dim, shape.row());
    Scratch<float> scores(QUERIES * head.room), queries(QUERIES * dim), sums(QUERIES * head.columns);
    float scale = 1 / sqrtf(float(dim)), totals[QUERIES];
    for (long t = 0; t < sequence.rows; t += QUERIES) {
        long rows = sequence.rows - t < QUERIES ? sequence.rows - t : QUERIES;
        long last = sequence.visible(t + rows - 1), room = whole(last, KEYS);
        for (long i = 0; i < QUERIES; i++)
            for (long d = 0; d < dim; d++)
                queries[i * dim + d] = i < rows ? read(q + (t + i) * shape.stride + h * dim + d) * scale : 0;
        for (long p = 0; p < last; p += KEYS) score_tile(&queries[0], head, dim, p, &scores[0]);
        for (long i = 0; i < QUERIES; i++) {
            long count = sequence.visible(t + (i < rows ? i : 0));
            totals[i] = exponentiate(&scores[i * head.room], count, room);
        }
        weigh(&scores[0], head, last, &sums[0]);
        for (long i = 0; i < rows; i++)
            for (long d = 0; d < dim; d++)
                write(out + (t + i) * size + h * dim + d, sums[i * head.columns + d] / totals[i]);
    }
}

// A piece of work: one head of a long sequence, or some heads of one query.
struct Item {
    long sequence, row, head;
};

std::vector<Item> list_items(const Sequence* sequences, long count, long heads) {
    std::vector<Item> items;
    for (long s = 0; s < count; s++)
        if (sequences[s].rows > FEW)
            for (long h = 0; h < heads; h++) items.push_back({s, 0, h});
    for (long s = 0; s < count; s++)
        if (sequences[s].rows <= FEW)
            for (long t = 0; t < sequences[s].rows; t++)
                for (long h = 0; h < heads; h += HEADS) items.push_back({s, t, h});
    return items;
}

template <class T>
void attend(const T* q, const T* keys, const T* values, T* out, const Sequence* sequences, long count,
            const Shape& shape, int threads) {
    std::vector<Item> items = list_items(sequences, count, shape.heads);
    long size = shape.heads * shape.dim;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (size_t i = 0; i < items.size(); i++) {
        auto [s, t, h] = items[i];
        const Sequence& one = sequences[s];
        const T *k = keys + one.at * shape.row(), *v = values + one.at * shape.row(), *from = q + (one.first + t) * shape.stride;
        T* to = out + (one.first + t) * size;
        if (one.rows > FEW)
            attend_many(from, k, v, to, one, h, shape);
        else
            attend_few(from, k, v, to, h, shape.heads - h < HEADS ? shape.heads - h : HEADS,
                       one.visible(t), shape);
    }
}

}  // namespace

EXPORT void attend_fp32(const float* q, const float* keys, const float* values, float* out,
                        const void* sequences, long count, long stride, long heads,
                        long kv_heads, long dim, int threads) {
    attend(q, keys, values, out, (const Sequence*)sequences, count, Shape{stride, heads, kv_heads, dim},
           threads);
}

EXPORT void attend_bf16(const uint16_t* q, const uint16_t* keys, const uint16_t* values, uint16_t* out,
                        const void* sequences, long count, long stride, long heads,
                        long kv_heads, long dim, int threads) {
    attend(q, keys, values, out, (const Sequence*)sequences, count, Shape{stride, heads, kv_heads, dim},
           threads);
}
