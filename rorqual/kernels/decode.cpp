// One decode step of a DeepSeek-V3-family model: whole blocks, norm to residual, for a few rows over a paged latent cache
// (report sections 2.1.1 and 2.1.2). Arithmetic in FP32. One parallel region a call; weights are read once for all rows of a tile.
//
// A row's sums never depend on which or how many other rows there are: every dot product runs over its elements in the same
// order, whatever the tile, and rows share nothing else. Threads split outputs, never sums.
// Letters: n rows, m model width, h heads, d width of a head without rotation, r rotary width, c latent width, v value width.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int LANES = 16;
typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

inline lanes load(const float* p) {
    lanes x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

typedef float half __attribute__((vector_size(32), aligned(4)));
typedef float quarter __attribute__((vector_size(16), aligned(4)));

#if defined(__clang__)
#define MIX(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int places __attribute__((vector_size(16)));
#define MIX(a, b, i, j, k, l) __builtin_shuffle(a, b, places{i, j, k, l})
#endif

// lane i + lane i + 8, then i + 4: four lanes are left
inline quarter fold(lanes x) {
    half h[2];
    quarter q[2];
    std::memcpy(h, &x, sizeof x);
    h[0] += h[1];
    std::memcpy(q, h, sizeof q);
    return q[0] + q[1];
}

// then i + 2, then i + 1
inline float total(lanes x) {
    quarter q = fold(x);
    return (q[0] + q[2]) + (q[1] + q[3]);
}

// four totals at once, each in the order of `total`
inline quarter totals(lanes w, lanes x, lanes y, lanes z) {
    quarter a = fold(w), b = fold(x), c = fold(y), d = fold(z);
    quarter ab = MIX(a, b, 0, 4, 1, 5), cd = MIX(c, d, 0, 4, 1, 5), AB = MIX(a, b, 2, 6, 3, 7), CD = MIX(c, d, 2, 6, 3, 7);
    quarter first = ab + AB, second = cd + CD;  // [a0+a2, b0+b2, a1+a3, b1+b3], the same of c and d
    return MIX(first, second, 0, 1, 4, 5) + MIX(first, second, 2, 3, 6, 7);
}

// y[row][out] for R rows and O outputs: R * O sums in registers, each in the same order
template <int R, int O>
inline void tile(const float* const* x, const float* w, long k, float* const* y, long out) {
    lanes sum[R][O];
    for (int r = 0; r < R; r++)
        for (int o = 0; o < O; o++) sum[r][o] = lanes{};
    long i = 0;
    for (; i + LANES <= k; i += LANES) {
        lanes weight[O];
        for (int o = 0; o < O; o++) weight[o] = load(w + o * k + i);
        for (int r = 0; r < R; r++) {
            lanes value = load(x[r] + i);
            for (int o = 0; o < O; o++) sum[r][o] += value * weight[o];
        }
    }
    for (int r = 0; r < R; r++) {
        float s[O];
        if constexpr (O == 4) {
            quarter four = totals(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
            std::memcpy(s, &four, sizeof four);
        } else {
            for (int o = 0; o < O; o++) s[o] = total(sum[r][o]);
        }
        for (int o = 0; o < O; o++)
            for (long j = i; j < k; j++) s[o] = __builtin_fmaf(x[r][j], w[o * k + j], s[o]);
        std::memcpy(y[r] + out, s, sizeof s);
    }
}

template <int O>
inline void outputs(const float* const* x, long n, const float* w, long k, float* const* y, long out) {
    long row = 0;
    for (; row + 4 <= n; row += 4) tile<4, O>(x + row, w, k, y + row, out);
    if (row + 2 <= n) tile<2, O>(x + row, w, k, y + row, out), row += 2;
    if (row < n) tile<1, O>(x + row, w, k, y + row, out);
}

constexpr long GROUP = 4;  // outputs of a tile

inline void some_outputs(const float* const* x, long n, const float* w, long k, float* const* y, long first, long last) {
    long out = first;
    for (; out + GROUP <= last; out += GROUP) outputs<GROUP>(x, n, w + out * k, k, y, out);
    for (; out < last; out++) outputs<1>(x, n, w + out * k, k, y, out);
}

inline void rms_norm(const float* x, const float* w, float* y, long m, float eps) {
    lanes squares = lanes{};
    long i = 0;
    for (; i + LANES <= m; i += LANES) {
        lanes v = load(x + i);
        squares += v * v;
    }
    float sum = total(squares);
    for (; i < m; i++) sum = __builtin_fmaf(x[i], x[i], sum);
    float scale = 1.0f / std::sqrt(sum / m + eps);
    for (long j = 0; j < m; j++) y[j] = x[j] * scale * w[j];
}

void norms(const float* x, long ldx, const float* w, float* y, long ldy, long n, long m, float eps) {
#pragma omp for schedule(static)
    for (long row = 0; row < n; row++) rms_norm(x + row * ldx, w, y + row * ldy, m, eps);
}

inline void turn(float* x, const float* cos, const float* sin, long pairs) {
    for (long p = 0; p < pairs; p++) {
        float a = x[2 * p], b = x[2 * p + 1];
        x[2 * p] = a * cos[p] - b * sin[p];
        x[2 * p + 1] = a * sin[p] + b * cos[p];
    }
}

inline float silu(float x) { return x / (1.0f + std::exp(-x)); }

constexpr long HEADS = 4;  // of a row, which read its cached entries together

// y[h][k] = sum over cached entries t of a[h][t] entry_t[k], in the order of t, for H heads that read each entry together
template <int H>
inline void mix_entries(const float* const* a, long count, const int64_t* table, long block_size, const float* cache, long entry, long width, float* const* y) {
    long k = 0;
    for (; k + 2 * LANES <= width; k += 2 * LANES) {
        lanes sum[H][2];
        for (int h = 0; h < H; h++) sum[h][0] = sum[h][1] = lanes{};
        for (long t = 0; t < count; t += block_size) {
            const float* e = cache + table[t / block_size] * block_size * entry + k;
            const long some = count - t < block_size ? count - t : block_size;
            for (long j = 0; j < some; j++) {
                const lanes first = load(e + j * entry), second = load(e + j * entry + LANES);
                for (int h = 0; h < H; h++) sum[h][0] += a[h][t + j] * first, sum[h][1] += a[h][t + j] * second;
            }
        }
        for (int h = 0; h < H; h++) std::memcpy(y[h] + k, sum[h], sizeof sum[h]);
    }
    for (; k < width; k++)
        for (int h = 0; h < H; h++) {
            float sum = 0.0f;
            for (long t = 0; t < count; t++)
                sum = __builtin_fmaf(a[h][t], cache[(table[t / block_size] * block_size + t % block_size) * entry + k], sum);
            y[h][k] = sum;
        }
}

}  // namespace

#include "panels.h"

extern "C" {

// Sizes of the model, in the order in which decode.py fills them.
struct Sizes {
    long m, h, d, r, c, v, q_rank, experts, chosen, groups, kept_groups, width, shared, dense, block_size, num_blocks, softmax, normalise, bias_sum;
    float eps, scale, route_scale;
};

// Weights of one block; null where the block has none.
struct Weights {
    const float *input_norm, *q_norm, *kv_norm, *post_norm, *bias;
    Matrix w_uk, w_uv, q_a, q_b, kv_a, o, gate, gate_up, down, ffn_gate, ffn_up, ffn_down;
};

void rq_linear(const float* x, const Matrix* w, float* y, long n, long k, long o) {
#pragma omp parallel
    linear(x, k, *w, y, o, n, k, o);
}

void rq_norm_rows(const float* x, const float* w, float* y, long n, long m, float eps) {
#pragma omp parallel
    norms(x, m, w, y, m, n, m, eps);
}

}  // extern "C"

namespace {

struct Scratch {  // carved out of one buffer by rq_decode
    float *u, *cq, *q, *ckv, *latent, *mixed, *heads, *scores, *hidden, *up, *rows, *logits, *weights, *shared;
    int64_t *experts, *order, *starts;
};

// Equations 1-11 in absorbed form: u is the normed input, x the residual stream.
void attention(const Sizes& s, const Weights& w, Scratch& b, float* x, const float* cos, const float* sin, const int64_t* positions,
               const int64_t* tables, long table_width, float* cache, long n, long longest) {
    const long entry = s.c + s.r, q_width = s.h * (s.d + s.r), head = s.d + s.r;
    norms(x, s.m, w.input_norm, b.u, s.m, n, s.m, s.eps);
    if (s.q_rank) {
        linear(b.u, s.m, w.q_a, b.cq, s.q_rank, n, s.m, s.q_rank);
        norms(b.cq, s.q_rank, w.q_norm, b.cq, s.q_rank, n, s.q_rank, s.eps);
        linear(b.cq, s.q_rank, w.q_b, b.q, q_width, n, s.q_rank, q_width);
    } else {
        linear(b.u, s.m, w.q_b, b.q, q_width, n, s.m, q_width);
    }
    linear(b.u, s.m, w.kv_a, b.ckv, entry, n, s.m, entry);
#pragma omp for schedule(static)
    for (long row = 0; row < n; row++) {  // the cache gets the normed latent and the rotated key
        float* e = b.ckv + row * entry;
        rms_norm(e, w.kv_norm, e, s.c, s.eps);
        turn(e + s.c, cos + row * (s.r / 2), sin + row * (s.r / 2), s.r / 2);
        long p = positions[row], block = tables[row * table_width + p / s.block_size];
        std::memcpy(cache + (block * s.block_size + p % s.block_size) * entry, e, entry * sizeof(float));
        for (long i = 0; i < s.h; i++) turn(b.q + row * q_width + i * head + s.d, cos + row * (s.r / 2), sin + row * (s.r / 2), s.r / 2);
    }
    per_head(b.q, head, q_width, w.w_uk, b.latent, entry, n, s.h, s.d, s.c);  // [W^UK^T q_nope ; q_rope]
    const long parts = (s.h + HEADS - 1) / HEADS;
#pragma omp for schedule(static, 1)
    for (long job = 0; job < n * parts; job++) {
        const long row = job / parts, head_0 = job % parts * HEADS, heads = s.h - head_0 < HEADS ? s.h - head_0 : HEADS, count = positions[row] + 1;
        const float *lat[HEADS], *share[HEADS];
        float *score[HEADS], *z[HEADS];
        for (long i = 0; i < heads; i++) {
            const long place = row * s.h + head_0 + i;
            float* l = b.latent + place * entry;
            std::memcpy(l + s.c, b.q + row * q_width + (head_0 + i) * head + s.d, s.r * sizeof(float));
            lat[i] = l, z[i] = b.mixed + place * s.c, share[i] = score[i] = b.scores + place * longest;
        }
        const int64_t* table = tables + row * table_width;
        for (long t = 0; t < count; t += s.block_size) {
            float* at[HEADS];
            for (long i = 0; i < heads; i++) at[i] = score[i] + t;
            some_outputs(lat, heads, cache + table[t / s.block_size] * s.block_size * entry, entry, at, 0, count - t < s.block_size ? count - t : s.block_size);
        }
        for (long i = 0; i < heads; i++) {
            float most = -INFINITY, sum = 0.0f;
            for (long t = 0; t < count; t++) {
                score[i][t] *= s.scale;
                most = score[i][t] > most ? score[i][t] : most;
            }
            for (long t = 0; t < count; t++) sum += score[i][t] = std::exp(score[i][t] - most);
            for (long t = 0; t < count; t++) score[i][t] /= sum;
        }
        if (heads == HEADS) mix_entries<HEADS>(share, count, table, s.block_size, cache, entry, s.c, z);
        else
            for (long i = 0; i < heads; i++) mix_entries<1>(share + i, count, table, s.block_size, cache, entry, s.c, z + i);
    }
    per_head(b.mixed, s.c, s.h * s.c, w.w_uv, b.heads, s.v, n, s.h, s.c, s.v);
    linear(b.heads, s.h * s.v, w.o, b.u, s.m, n, s.h * s.v, s.m);
#pragma omp for schedule(static)
    for (long i = 0; i < n * s.m; i++) x[i] += b.u[i];
}

// gate, up and down of a dense FFN, or of the shared experts; the result is left in `out`
void swiglu_ffn(const Sizes& s, const Weights& w, Scratch& b, float* out, long n, long width) {
    linear(b.u, s.m, w.ffn_gate, b.hidden, width, n, s.m, width);
    linear(b.u, s.m, w.ffn_up, b.up, width, n, s.m, width);
#pragma omp for schedule(static)
    for (long i = 0; i < n * width; i++) b.hidden[i] = silu(b.hidden[i]) * b.up[i];
    linear(b.hidden, width, w.ffn_down, out, s.m, n, width, s.m);
}

// Equations 13-16 for one row: the biased score chooses, the plain one weighs.
void route(const Sizes& s, const float* bias, float* scores, float* choice, int64_t* index, float* weight) {
    const long size = s.experts / s.groups;
    if (s.softmax) {
        float most = scores[0], sum = 0.0f;
        for (long e = 1; e < s.experts; e++) most = scores[e] > most ? scores[e] : most;
        for (long e = 0; e < s.experts; e++) sum += scores[e] = std::exp(scores[e] - most);
        for (long e = 0; e < s.experts; e++) scores[e] /= sum;
    } else {
        for (long e = 0; e < s.experts; e++) scores[e] = 1.0f / (1.0f + std::exp(-scores[e]));
    }
    for (long e = 0; e < s.experts; e++) choice[e] = scores[e] + (bias ? bias[e] : 0.0f);
    if (s.kept_groups) {
        float* best = choice + s.experts;  // a group's score: its largest, or the sum of its two largest
        for (long g = 0; g < s.groups; g++) {
            float first = -INFINITY, second = -INFINITY;
            for (long e = g * size; e < (g + 1) * size; e++) {
                if (choice[e] > first) second = first, first = choice[e];
                else if (choice[e] > second) second = choice[e];
            }
            best[g] = s.bias_sum && size > 1 ? first + second : first;
        }
        for (long dropped = 0; dropped < s.groups - s.kept_groups; dropped++) {
            long worst = -1;  // the lowest group goes, the last one of equals
            for (long g = 0; g < s.groups; g++)
                if (best[g] != INFINITY && (worst < 0 || best[g] <= best[worst])) worst = g;
            best[worst] = INFINITY;
            for (long e = worst * size; e < (worst + 1) * size; e++) choice[e] = -INFINITY;
        }
    }
    float sum = 0.0f;
    for (long j = 0; j < s.chosen; j++) {
        long top = 0;
        for (long e = 1; e < s.experts; e++)
            if (choice[e] > choice[top]) top = e;
        index[j] = top;
        weight[j] = scores[top];
        sum += scores[top];
        choice[top] = -INFINITY;
    }
    for (long j = 0; j < s.chosen; j++) weight[j] = (s.normalise ? weight[j] / (sum + 1e-20f) : weight[j]) * s.route_scale;
}

// Equation 12: rows grouped by expert, each expert's weights read once for all of its rows.
void experts(const Sizes& s, const Weights& w, Scratch& b, float* x, long n) {
    const long slots = n * s.chosen, f = s.width;
    linear(b.u, s.m, w.gate, b.logits, 2 * s.experts + s.groups, n, s.m, s.experts);
#pragma omp for schedule(static)
    for (long row = 0; row < n; row++) {
        float* score = b.logits + row * (2 * s.experts + s.groups);
        route(s, w.bias, score, score + s.experts, b.experts + row * s.chosen, b.weights + row * s.chosen);
    }
#pragma omp single
    {
        for (long e = 0; e <= s.experts; e++) b.starts[e] = 0;
        for (long i = 0; i < slots; i++) b.starts[b.experts[i] + 1]++;
        for (long e = 0; e < s.experts; e++) b.starts[e + 1] += b.starts[e];
        int64_t* next = b.order + slots;
        for (long e = 0; e < s.experts; e++) next[e] = b.starts[e];
        for (long i = 0; i < slots; i++) b.order[next[b.experts[i]]++] = i;
    }
    const long stripes = (f + STRIPE - 1) / STRIPE, outs = (s.m + STRIPE - 1) / STRIPE;
    const float* in[64];
    float *gate[64], *up[64], *out[64];
#pragma omp for schedule(static, 1)
    for (long job = 0; job < s.experts * stripes; job++) {
        const long e = job / stripes, first = job % stripes * STRIPE, last = first + STRIPE < f ? first + STRIPE : f;
        const Matrix gates = part(w.gate_up, 2 * e, f, s.m), ups = part(w.gate_up, 2 * e + 1, f, s.m);
        for (long at = b.starts[e]; at < b.starts[e + 1]; at += 64) {
            long rows = b.starts[e + 1] - at < 64 ? b.starts[e + 1] - at : 64;
            for (long i = 0; i < rows; i++) {
                long slot = b.order[at + i];
                in[i] = b.u + slot / s.chosen * s.m;
                gate[i] = b.hidden + slot * f;
                up[i] = b.up + slot * f;
            }
            outputs_of(in, rows, gates, s.m, gate, first, last, f);
            outputs_of(in, rows, ups, s.m, up, first, last, f);
            for (long i = 0; i < rows; i++)
                for (long k = first; k < last; k++) gate[i][k] = silu(gate[i][k]) * up[i][k];
        }
    }
#pragma omp for schedule(static, 1)
    for (long job = 0; job < s.experts * outs; job++) {
        const long e = job / outs, first = job % outs * STRIPE, last = first + STRIPE < s.m ? first + STRIPE : s.m;
        for (long at = b.starts[e]; at < b.starts[e + 1]; at += 64) {
            long rows = b.starts[e + 1] - at < 64 ? b.starts[e + 1] - at : 64;
            for (long i = 0; i < rows; i++) in[i] = b.hidden + b.order[at + i] * f, out[i] = b.rows + b.order[at + i] * s.m;
            outputs_of(in, rows, part(w.down, e, s.m, f), f, out, first, last, s.m);
        }
    }
    if (s.shared) swiglu_ffn(s, w, b, b.shared, n, s.shared);
#pragma omp for schedule(static)
    for (long i = 0; i < n * s.m; i++) {
        const long row = i / s.m, k = i % s.m;
        float sum = s.shared ? b.shared[i] : 0.0f;
        for (long j = 0; j < s.chosen; j++) sum = __builtin_fmaf(b.weights[row * s.chosen + j], b.rows[(row * s.chosen + j) * s.m + k], sum);
        x[i] += sum;
    }
}

}  // namespace

extern "C" {

// Floats of scratch that rq_decode needs.
long rq_decode_scratch(const Sizes* s, long n, long longest) {
    const long entry = s->c + s->r, slots = n * (s->chosen > 0 ? s->chosen : 1);
    long ffn = n * (s->dense > s->shared ? s->dense : s->shared);
    ffn = slots * s->width > ffn ? slots * s->width : ffn;
    return n * (2 * s->m + s->q_rank + s->h * (s->d + s->r) + entry + s->h * (entry + s->c + s->v + longest)) + 2 * ffn + slots * (s->m + 3) +
           n * (2 * s->experts + s->groups) + 2 * (2 * slots + 2 * s->experts + 2) + 64;
}

// Blocks `layers` of them over x [n, m] in place; cache[l] is layer l's storage [num_blocks, block_size, c + r].
// `routes` takes the chosen experts [MoE layers, n, chosen], or is null.
void rq_decode(const Sizes* sizes, const Weights* blocks, long layers, float* x, const float* cos, const float* sin, const int64_t* positions,
               const int64_t* tables, long table_width, float* const* cache, long n, long longest, float* scratch, int64_t* routes) {
    const Sizes& s = *sizes;
    const long entry = s.c + s.r, slots = n * (s.chosen > 0 ? s.chosen : 1);
    long ffn = n * (s.dense > s.shared ? s.dense : s.shared);
    ffn = slots * s.width > ffn ? slots * s.width : ffn;
    Scratch b;
    float* p = scratch;
    auto take = [&p](long count) { float* start = p; p += count; return start; };
    b.u = take(n * s.m), b.shared = take(n * s.m), b.cq = take(n * s.q_rank), b.q = take(n * s.h * (s.d + s.r)), b.ckv = take(n * entry);
    b.latent = take(n * s.h * entry), b.mixed = take(n * s.h * s.c), b.heads = take(n * s.h * s.v), b.scores = take(n * s.h * longest);
    b.hidden = take(ffn), b.up = take(ffn), b.rows = take(slots * s.m), b.weights = take(slots), b.logits = take(n * (2 * s.experts + s.groups));
    p = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(p) + 7) & ~uintptr_t(7));
    b.experts = reinterpret_cast<int64_t*>(p);
    b.order = b.experts + slots;
    b.starts = b.order + slots + s.experts;
#pragma omp parallel firstprivate(b, routes)
    for (long l = 0; l < layers; l++) {
        const Weights& w = blocks[l];
        attention(s, w, b, x, cos, sin, positions, tables, table_width, cache[l], n, longest);
        norms(x, s.m, w.post_norm, b.u, s.m, n, s.m, s.eps);
        if (w.gate.data) {
            if (routes) b.experts = routes, routes += slots;
            experts(s, w, b, x, n);
        } else {
            swiglu_ffn(s, w, b, b.shared, n, s.dense);
#pragma omp for schedule(static)
            for (long i = 0; i < n * s.m; i++) x[i] += b.shared[i];
        }
    }
}

}  // extern "C"
