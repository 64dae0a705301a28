// One decode step of a DeepSeek-V3-family model in one call: embedding, blocks over a paged latent cache, final norm, head and draw, or one
// MTP module with its head (report sections 2.1.1, 2.1.2 and 2.2), for a few rows. Arithmetic in FP32. One parallel region a call, in phases
// with one wait after each; weights are read once for all rows of a tile.
//
// A row's sums never depend on which or how many other rows there are: every dot product runs over its elements in the same
// order, whatever the tile, and rows share nothing else. Threads split outputs, never sums; what costs less than a wait each does for itself.
// Letters: n rows, m model width, h heads, d width of a head without rotation, r rotary width, c latent width, v value width.

#include "lanes.h"

#if defined(_OPENMP)
extern "C" int omp_get_thread_num(void);
extern "C" int omp_get_num_threads(void);
extern "C" int omp_get_max_threads(void);
#endif

extern "C" long rq_draw_row(const float* logits, long width, int64_t key, double temperature);  // sampling.cpp

namespace {

constexpr long FEW = 4;  // rows up to which every thread norms and routes for itself, and rows of one sequence attend together
typedef float half __attribute__((vector_size(32), aligned(4)));
typedef float quarter __attribute__((vector_size(16), aligned(4)));

#if defined(__AVX512F__)
#if defined(__clang__)
#define MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int places __attribute__((vector_size(64)));
#define MIX(a, b, ...) __builtin_shuffle(a, b, places{__VA_ARGS__})
#endif

// The sums of four vectors' lanes at once: of neighbours in each quarter, then of the quarters.
inline quarter totals(lanes a, lanes b, lanes c, lanes d) {
    const lanes ab = MIX(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) + MIX(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    const lanes cd = MIX(c, d, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) + MIX(c, d, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    const lanes sums = MIX(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) + MIX(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    half h[2];
    quarter q[2];
    std::memcpy(h, &sums, sizeof sums);
    h[0] += h[1];
    std::memcpy(q, h, sizeof q);
    return q[0] + q[1];
}
#else
inline quarter folded(lanes x) {
    half h[2];
    quarter q[2];
    std::memcpy(h, &x, sizeof x);
    h[0] += h[1];
    std::memcpy(q, h, sizeof q);
    return q[0] + q[1];
}

inline quarter totals(lanes a, lanes b, lanes c, lanes d) {
    const quarter x[] = {folded(a), folded(b), folded(c), folded(d)};
    quarter sums;
    for (int i = 0; i < 4; i++) sums[i] = (x[i][0] + x[i][1]) + (x[i][2] + x[i][3]);
    return sums;
}
#endif

inline float lane_sum(lanes x) { return totals(x, x, x, x)[0]; }

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
            for (int o = 0; o < O; o++) s[o] = lane_sum(sum[r][o]);
        }
        for (int o = 0; i < k && o < O; o++)
            for (long j = i; j < k; j++) s[o] = __builtin_fmaf(x[r][j], w[o * k + j], s[o]);
        std::memcpy(y[r] + out, s, sizeof s);
    }
}

template <int O>
inline void outputs(const float* const* x, long n, const float* w, long k, float* const* y, long out) {
    long row = 0;
    for (; row + 4 <= n; row += 4) tile<4, O>(x + row, w, k, y + row, out);
    if (n - row == 3) return tile<3, O>(x + row, w, k, y + row, out);
    if (n - row == 2) return tile<2, O>(x + row, w, k, y + row, out);
    if (n - row == 1) tile<1, O>(x + row, w, k, y + row, out);
}

constexpr long GROUP = 4;  // outputs of a tile

__attribute__((noinline)) void some_outputs(const float* const* x, long n, const float* w, long k, float* const* y, long first, long last) {
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
    float sum = lane_sum(squares);
    for (; i < m; i++) sum = __builtin_fmaf(x[i], x[i], sum);
    float scale = 1.0f / std::sqrt(sum / m + eps);
    for (long j = 0; j < m; j++) y[j] = x[j] * scale * w[j];
}

inline lanes load_some(const float* p, long count) {  // zeros after `count`
    if (count >= LANES) return load(p);
    lanes x = lanes{};
    std::memcpy(&x, p, count * sizeof(float));
    return x;
}

inline void store_some(float* p, lanes x, long count) {
    if (count >= LANES) std::memcpy(p, &x, sizeof x);  // a size known beforehand: no call
    else std::memcpy(p, &x, count * sizeof(float));
}

// gate = silu(gate) * up
__attribute__((noinline)) void swiglu(float* gate, const float* up, long count) {
    for (long i = 0; i < count; i += LANES) {
        const lanes g = load_some(gate + i, count - i);
        store_some(gate + i, g / (1.0f + exp_lanes(-g)) * load_some(up + i, count - i), count - i);
    }
}

__attribute__((noinline)) void sigmoid(float* x, long count) {
    for (long i = 0; i < count; i += LANES) store_some(x + i, 1.0f / (1.0f + exp_lanes(-load_some(x + i, count - i))), count - i);
}

// softmax of scale * x
__attribute__((noinline)) void softmax(float* x, long count, float scale) {
    lanes tops = lanes{} + -INFINITY;
    long i = 0;
    for (; i + LANES <= count; i += LANES) {
        const lanes here = load(x + i) * scale;
        tops = larger(here, tops);
        std::memcpy(x + i, &here, sizeof here);
    }
    float most = -INFINITY;
    for (int j = 0; j < LANES; j++) most = tops[j] > most ? tops[j] : most;
    for (; i < count; i++) {
        x[i] *= scale;
        most = x[i] > most ? x[i] : most;
    }
    lanes sums = lanes{};
    i = 0;
    for (; i + LANES <= count; i += LANES) {
        const lanes e = exp_lanes(load(x + i) - most);
        sums += e;
        std::memcpy(x + i, &e, sizeof e);
    }
    if (i < count) {
        store_some(x + i, exp_lanes(load_some(x + i, count - i) - most), count - i);
        sums += load_some(x + i, count - i);
    }
    const float sum = lane_sum(sums);
    for (i = 0; i < count; i++) x[i] /= sum;
}

inline void turn(float* x, const float* cos, const float* sin, long pairs) {
    for (long p = 0; p < pairs; p++) {
        float a = x[2 * p], b = x[2 * p + 1];
        x[2 * p] = a * cos[p] - b * sin[p];
        x[2 * p + 1] = a * sin[p] + b * cos[p];
    }
}

constexpr long HEADS = FEW;  // of all rows of a job, which read a sequence's cached entries together

// y[h][k] = sum over cached entries t of a[h][t] entry_t[k], in the order of t, for H heads that read each entry together; head h has counts[h]
template <int H>
__attribute__((noinline)) void mix_entries(const float* const* a, const long* counts, const int64_t* table, long block_size, const float* cache, long entry, long width, float* const* y) {
    long count = counts[0];
    for (int h = 1; h < H; h++) count = counts[h] < count ? counts[h] : count;
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
        for (int h = 0; h < H; h++) {
            for (long t = count; t < counts[h]; t++) {
                const float* e = cache + (table[t / block_size] * block_size + t % block_size) * entry + k;
                sum[h][0] += a[h][t] * load(e), sum[h][1] += a[h][t] * load(e + LANES);
            }
            std::memcpy(y[h] + k, sum[h], sizeof sum[h]);
        }
    }
    for (; k < width; k++)
        for (int h = 0; h < H; h++) {
            float sum = 0.0f;
            for (long t = 0; t < counts[h]; t++)
                sum = __builtin_fmaf(a[h][t], cache[(table[t / block_size] * block_size + t % block_size) * entry + k], sum);
            y[h][k] = sum;
        }
}

}  // namespace

#include "panels.h"

extern "C" {

// Sizes of the model, in the order in which decode.py fills them.
struct Sizes {
    long m, h, d, r, c, v, q_rank, experts, chosen, groups, kept_groups, width, shared, dense, vocab, block_size, num_blocks, softmax, normalise,
        bias_sum;
    float eps, scale, route_scale;
};

// Weights of one block; null where the block has none. q_b, w_uk and w_uv are stacks, a matrix for each head.
struct Weights {
    const float *input_norm, *q_norm, *kv_norm, *post_norm, *bias;
    Matrix w_uk, w_uv, q_a, q_b, kv_a, o, gate, gate_up, down, ffn_gate, ffn_up, ffn_down;
};

// What stands around the blocks: of an MTP module, and of the trunk, which has neither enorm, hnorm nor eh_proj.
struct Ends {
    const float *norm, *enorm, *hnorm;
    Matrix eh_proj, head;
};

struct Model {
    Sizes s;
    const Weights* blocks;
    const Ends* ends;  // the trunk's, then each module's
    const void* embed;
    long embed_bf16;
    const float *cos, *sin;  // [positions, r / 2]
};

// One call. Row i is token ids[i] at positions[i] of the sequence whose block table begins at tables[starts[i]]. States are wanted of `wanted`
// rows alone, select[j] or all (null); the others, in a call of one block, only leave their entries. `drawn` of the wanted rows, rows[j] or all, get logits and tokens.
struct Call {
    long n, wanted, drawn, longest, first, last, ends, width;
    const int64_t *ids, *positions, *starts, *tables, *select, *rows, *keys;
    const double* temperatures;
    const float* hidden;     // [n, m], for a module
    const int64_t* sources;  // which of them is row i's; null: row i
    float *out, *logits, *cache, *scratch;
    int64_t *tokens, *routes;  // routes: the chosen experts [MoE blocks, n, chosen]; null where they are not wanted
};

// A call of rq_advance: `sequences` of together `rows` rows, and of each the numbers of a Line; the tables behind them.
struct Plan {
    int64_t sequences, rows, longest, width, layers, module;
};

// A decoding sequence: its newest token at `position`, a draft behind it where rows is 2, where its table begins, and keys of its next draws.
struct Line {
    int64_t position, rows, table, token, draft, keys[3];
};

}  // extern "C"

namespace {

struct Team {
    long me, all;
    long from(long jobs) const { return jobs * me / all; }
    long to(long jobs) const { return jobs * (me + 1) / all; }
};

inline Team team() {
#if defined(_OPENMP)
    return {omp_get_thread_num(), omp_get_num_threads()};
#else
    return {0, 1};
#endif
}

inline void wait() {
#pragma omp barrier
}

struct Scratch {  // one for all threads, then what each has for itself
    float *x, *merged, *u, *cq, *q, *ckv, *latent, *mixed, *heads, *scores, *hidden, *up, *rows, *logits, *weights, *ffn, *ffn_up, *shared;
    int64_t* experts;
    float *my_u, *my_cq, *my_logits, *my_weights;
    int64_t *my_experts, *order, *next, *starts;
};

// Carves it; with a null start counts the floats.
long carve(const Model& model, const Call& a, Team t, float* start, Scratch& b) {
    const Sizes& s = model.s;
    const long n = a.n, q = a.wanted, entry = s.c + s.r, slots = q * (s.chosen > 0 ? s.chosen : 1), ffn = s.dense > s.shared ? s.dense : s.shared;
    const long few = n < FEW ? n : FEW, scores = 2 * s.experts + s.groups;
    long at = 0;
    auto take = [&](long count) {
        float* p = start ? start + at : nullptr;
        at += (count + 15) / 16 * 16;  // a cache line each
        return p;
    };
    auto take_whole = [&](long count) { return reinterpret_cast<int64_t*>(take(2 * count)); };
    b.x = take(n * s.m), b.merged = take(a.ends ? 2 * n * s.m : 0), b.u = take(n * s.m), b.cq = take(q * s.q_rank), b.q = take(q * s.h * (s.d + s.r));
    b.ckv = take(n * entry), b.latent = take(q * s.h * entry), b.mixed = take(q * s.h * s.c), b.heads = take(q * s.h * s.v);
    b.scores = take(q * s.h * a.longest), b.hidden = take(slots * s.width), b.up = take(slots * s.width), b.rows = take(slots * s.m);
    b.logits = take(q * scores), b.weights = take(slots), b.ffn = take(q * ffn), b.ffn_up = take(q * ffn), b.shared = take(q * s.m);
    b.experts = take_whole(slots);
    for (long i = 0; i < t.all; i++) {
        Scratch mine = b;
        mine.my_u = take(few * s.m), mine.my_cq = take(few * s.q_rank), mine.my_logits = take(few * scores), mine.my_weights = take(few * s.chosen);
        mine.my_experts = take_whole(few * s.chosen), mine.order = take_whole(slots), mine.next = take_whole(s.experts + 1);
        mine.starts = take_whole(s.experts + 2);
        if (i == t.me) b = mine;
    }
    return at;
}

// Normed rows: by each thread for itself where there are few, else together. in(i) is row i.
template <typename In>
inline const float* normed(Team t, In in, const float* w, long n, long m, float eps, float* mine, float* ours) {
    if (n <= FEW) {
        for (long i = 0; i < n; i++) rms_norm(in(i), w, mine + i * m, m, eps);
        return mine;
    }
    for (long i = t.from(n); i < t.to(n); i++) rms_norm(in(i), w, ours + i * m, m, eps);
    wait();
    return ours;
}

// Units `from` to `to` of two matrices' outputs, counted through: calls do_first and do_second with their parts. A unit of the second costs as
// much as `weight` of the first.
template <typename First, typename Second>
inline void split(Team t, long first, long second, long weight, First do_first, Second do_second) {
    auto units_below = [&](long cost) { return cost <= first ? cost : first + (cost - first + weight / 2) / weight; };
    const long from = units_below(t.from(first + weight * second)), to = units_below(t.to(first + weight * second));
    if (from < first) do_first(from, to < first ? to : first);
    if (to > first) do_second(from > first ? from - first : 0, to - first);
}

// The wanted rows of the residual stream, and which rows of the call they are.
struct Wanted {
    const int64_t* select;
    float* x;
    long m;
    long row(long i) const { return select ? select[i] : i; }
    float* operator()(long i) const { return x + row(i) * m; }
};

// Equations 1-11 in absorbed form. All rows leave an entry in the cache, the wanted ones get their attention's output added.
void attention(const Model& model, const Weights& w, const Call& a, Team t, Scratch& b, float* cache) {
    const Sizes& s = model.s;
    const long n = a.n, q = a.wanted, m = s.m, entry = s.c + s.r, head = s.d + s.r, half = s.r / 2;
    const Wanted x{a.select, b.x, m};
    const float* u = normed(t, [&](long i) { return b.x + i * m; }, w.input_norm, n, m, s.eps, b.my_u, b.u);
    auto all_u = [&](long i) { return u + i * m; };
    auto wanted_u = [&](long i) { return u + x.row(i) * m; };
    split(t, s.q_rank ? units(s.q_rank) : 0, units(entry), 1,
        [&](long from, long to) { multiply(w.q_a, m, s.q_rank, q, wanted_u, [&](long i) { return b.cq + i * s.q_rank; }, from, to); },
        [&](long from, long to) { multiply(w.kv_a, m, entry, n, all_u, [&](long i) { return b.ckv + i * entry; }, from, to); });
    wait();
    const float* cq = nullptr;
    if (s.q_rank) cq = normed(t, [&](long i) { return b.cq + i * s.q_rank; }, w.q_norm, q, s.q_rank, s.eps, b.my_cq, b.cq);
    for (long i = t.from(n); i < t.to(n); i++) {  // the cache gets the normed latent and the rotated key
        float* e = b.ckv + i * entry;
        const long p = a.positions[i], block = a.tables[a.starts[i] + p / s.block_size];
        rms_norm(e, w.kv_norm, e, s.c, s.eps);
        turn(e + s.c, model.cos + p * half, model.sin + p * half, half);
        std::memcpy(cache + (block * s.block_size + p % s.block_size) * entry, e, entry * sizeof(float));
    }
    if (!q) return;
    const long inputs = s.q_rank ? s.q_rank : m;
    for (long h = t.from(s.h); h < t.to(s.h); h++) {  // [W^UK^T q_nope ; q_rope] of each head
        auto of_head = [&](long i) { return b.q + (i * s.h + h) * head; };
        auto latent = [&](long i) { return b.latent + (i * s.h + h) * entry; };
        const Matrix q_b = part(w.q_b, h, head, inputs);
        if (cq) multiply(q_b, inputs, head, q, [&](long i) { return cq + i * inputs; }, of_head, 0, units(head));
        else multiply(q_b, inputs, head, q, wanted_u, of_head, 0, units(head));
        multiply(part(w.w_uk, h, s.c, s.d), s.d, s.c, q, of_head, latent, 0, units(s.c));
        for (long i = 0; i < q; i++) {
            const long p = a.positions[x.row(i)];
            std::memcpy(latent(i) + s.c, of_head(i) + s.d, s.r * sizeof(float));
            turn(latent(i) + s.c, model.cos + p * half, model.sin + p * half, half);
        }
    }
    wait();
    bool one = q <= FEW;  // few rows of one sequence go together
    for (long i = 1; i < q && one; i++) one = a.starts[x.row(i)] == a.starts[x.row(0)];
    const long rows = one ? q : 1, most = HEADS / rows;
    long parts = (s.h + most - 1) / most;
    while (parts < s.h && q / rows * parts % t.all) parts++;
    for (long job = t.from(q / rows * parts); job < t.to(q / rows * parts); job++) {
        const long first = job / parts * rows, from = job % parts * s.h / parts, heads = (job % parts + 1) * s.h / parts - from, all = rows * heads;
        const int64_t* table = a.tables + a.starts[x.row(first)];
        const float *lat[HEADS], *share[HEADS];
        float *score[HEADS], *z[HEADS];
        long counts[HEADS], longest = 0;
        for (long i = 0; i < all; i++) {
            const long row = first + i / heads, place = row * s.h + from + i % heads;
            lat[i] = b.latent + place * entry, z[i] = b.mixed + place * s.c, share[i] = score[i] = b.scores + place * a.longest;
            counts[i] = a.positions[x.row(row)] + 1, longest = counts[i] > longest ? counts[i] : longest;
        }
        for (long at = 0; at < longest; at += s.block_size) {  // a row's scores past its own position are not used
            float* here[HEADS];
            for (long i = 0; i < all; i++) here[i] = score[i] + at;
            some_outputs(lat, all, cache + table[at / s.block_size] * s.block_size * entry, entry, here, 0, longest - at < s.block_size ? longest - at : s.block_size);
        }
        for (long i = 0; i < all; i++) softmax(score[i], counts[i], s.scale);
        switch (all) {
            case 1: mix_entries<1>(share, counts, table, s.block_size, cache, entry, s.c, z); break;
            case 2: mix_entries<2>(share, counts, table, s.block_size, cache, entry, s.c, z); break;
            case 3: mix_entries<3>(share, counts, table, s.block_size, cache, entry, s.c, z); break;
            default: mix_entries<HEADS>(share, counts, table, s.block_size, cache, entry, s.c, z);
        }
        if (q <= FEW)
            for (long h = from; h < from + heads; h++)
                multiply(part(w.w_uv, h, s.v, s.c), s.c, s.v, rows, [&](long i) { return b.mixed + ((first + i) * s.h + h) * s.c; },
                    [&](long i) { return b.heads + ((first + i) * s.h + h) * s.v; }, 0, units(s.v));
    }
    wait();
    if (q > FEW) {
        for (long h = t.from(s.h); h < t.to(s.h); h++)
            multiply(part(w.w_uv, h, s.v, s.c), s.c, s.v, q, [&](long i) { return b.mixed + (i * s.h + h) * s.c; },
                [&](long i) { return b.heads + (i * s.h + h) * s.v; }, 0, units(s.v));
        wait();
    }
    const long from = t.from(units(m)), to = t.to(units(m)), end = to * UNIT < m ? to * UNIT : m;
    multiply(w.o, s.h * s.v, m, q, [&](long i) { return b.heads + i * s.h * s.v; }, [&](long i) { return b.shared + i * m; }, from, to);
    for (long i = 0; i < q; i++)
        for (long k = from * UNIT; k < end; k++) x(i)[k] += b.shared[i * m + k];
    wait();
}

// Equations 13-16 for one row: the biased score chooses, the plain one weighs.
void route(const Sizes& s, const float* bias, float* scores, float* choice, int64_t* index, float* weight) {
    const long size = s.experts / s.groups;
    if (s.softmax) softmax(scores, s.experts, 1.0f);
    else sigmoid(scores, s.experts);
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

// silu(gate) * up of a dense FFN, or of the shared experts
inline void gated(const Weights& w, Scratch& b, const float* u, long n, long m, long width, long from, long to) {
    auto in = [&](long i) { return u + i * m; };
    multiply(w.ffn_gate, m, width, n, in, [&](long i) { return b.ffn + i * width; }, from, to);
    multiply(w.ffn_up, m, width, n, in, [&](long i) { return b.ffn_up + i * width; }, from, to);
    const long first = from * UNIT, last = to * UNIT < width ? to * UNIT : width;
    for (long i = 0; i < n; i++) swiglu(b.ffn + i * width + first, b.ffn_up + i * width + first, last - first);
}

// The FFN of a dense block, added to the wanted rows.
void dense(const Model& model, const Weights& w, const Call& a, Team t, Scratch& b) {
    const Sizes& s = model.s;
    const long n = a.wanted, m = s.m;
    const Wanted x{a.select, b.x, m};
    const float* u = normed(t, x, w.post_norm, n, m, s.eps, b.my_u, b.u);
    gated(w, b, u, n, m, s.dense, t.from(units(s.dense)), t.to(units(s.dense)));
    wait();
    const long from = t.from(units(m)), to = t.to(units(m)), end = to * UNIT < m ? to * UNIT : m;
    multiply(w.ffn_down, s.dense, m, n, [&](long i) { return b.ffn + i * s.dense; }, [&](long i) { return b.shared + i * m; }, from, to);
    for (long i = 0; i < n; i++)
        for (long k = from * UNIT; k < end; k++) x(i)[k] += b.shared[i * m + k];
    wait();
}

// Asks for the first lines of the first units, which nothing before them foretells.
inline void expect(const Matrix& w, long k, long from, long to) {
    const long sizes[] = {4, 4, 2, 2, 1, 1};
    for (long unit = from; unit < to && unit < from + 4; unit++)
        for (long line = 0; line < 16; line++) __builtin_prefetch(static_cast<const char*>(w.data) + unit * UNIT * k * sizes[w.kind] + line * 64);
}

// Equations 12-16: rows grouped by expert, each expert's weights read once for all of its rows.
void experts(const Model& model, const Weights& w, const Call& a, Team t, Scratch& b, int64_t* routes) {
    const Sizes& s = model.s;
    const long n = a.wanted, m = s.m, f = s.width, slots = n * s.chosen, scores = 2 * s.experts + s.groups;
    const Wanted x{a.select, b.x, m};
    const float* u = normed(t, x, w.post_norm, n, m, s.eps, b.my_u, b.u);
    split(t, units(s.experts), s.shared ? units(s.shared) : 0, 2,
        [&](long from, long to) { multiply(w.gate, m, s.experts, n, [&](long i) { return u + i * m; }, [&](long i) { return b.logits + i * scores; }, from, to); },
        [&](long from, long to) { gated(w, b, u, n, m, s.shared, from, to); });
    wait();
    int64_t* index = n <= FEW ? b.my_experts : b.experts;
    float* weight = n <= FEW ? b.my_weights : b.weights;
    if (n <= FEW) {
        for (long i = 0; i < n; i++) {
            float* score = b.my_logits + i * scores;
            std::memcpy(score, b.logits + i * scores, s.experts * sizeof(float));
            route(s, w.bias, score, score + s.experts, index + i * s.chosen, weight + i * s.chosen);
        }
    } else {
        for (long i = t.from(n); i < t.to(n); i++)
            route(s, w.bias, b.logits + i * scores, b.logits + i * scores + s.experts, index + i * s.chosen, weight + i * s.chosen);
        wait();
    }
    if (routes && t.me == 0) std::memcpy(routes, index, slots * sizeof(int64_t));
    int64_t *starts = b.starts, *next = b.next, *order = b.order;
    for (long e = 0; e <= s.experts; e++) starts[e] = 0;
    for (long i = 0; i < slots; i++) starts[index[i] + 1]++;
    for (long e = 0; e < s.experts; e++) starts[e + 1] += starts[e];
    for (long e = 0; e < s.experts; e++) next[e] = starts[e];
    for (long i = 0; i < slots; i++) order[next[index[i]]++] = i;
    long active = 0;
    for (long e = 0; e < s.experts; e++) active += starts[e + 1] > starts[e];
    const long stripes = units(f), cost = (slots + active) * stripes;  // a unit of an expert costs its rows and one for its weights
    long before = 0;
    for (long e = 0; e < s.experts; e++) {
        const long first = starts[e], rows = starts[e + 1] - first;
        if (rows == 0) continue;
        long from = stripes, to = 0;
        for (long k = 0; k < stripes; k++, before += rows + 1) {
            const long middle = 2 * before + rows + 1;
            if (middle * t.all / (2 * cost) == t.me) from = k < from ? k : from, to = k + 1;
        }
        if (from >= to) continue;
        auto in = [&](long i) { return u + order[first + i] / s.chosen * m; };
        auto gate = [&](long i) { return b.hidden + order[first + i] * f; };
        auto up = [&](long i) { return b.up + order[first + i] * f; };
        const Matrix gates = part(w.gate_up, 2 * e, f, m), ups = part(w.gate_up, 2 * e + 1, f, m);
        expect(ups, m, from, to);
        multiply(gates, m, f, rows, in, gate, from, to);
        if (e + 1 < s.experts && starts[e + 2] > starts[e + 1]) expect(part(w.gate_up, 2 * e + 2, f, m), m, 0, stripes);
        multiply(ups, m, f, rows, in, up, from, to);
        const long k = from * UNIT, last = to * UNIT < f ? to * UNIT : f;
        for (long i = 0; i < rows; i++) swiglu(gate(i) + k, up(i) + k, last - k);
    }
    wait();
    const long from = t.from(units(m)), to = t.to(units(m)), end = to * UNIT < m ? to * UNIT : m;
    for (long e = 0; e < s.experts; e++) {
        const long first = starts[e], rows = starts[e + 1] - first;
        if (rows)
            multiply(part(w.down, e, m, f), f, m, rows, [&](long i) { return b.hidden + order[first + i] * f; },
                [&](long i) { return b.rows + order[first + i] * m; }, from, to);
    }
    if (s.shared) multiply(w.ffn_down, s.shared, m, n, [&](long i) { return b.ffn + i * s.shared; }, [&](long i) { return b.shared + i * m; }, from, to);
    for (long i = 0; i < n; i++) {
        float sum[UNIT];
        for (long k = from * UNIT; k < end; k += UNIT) {
            const long some = end - k < UNIT ? end - k : UNIT;
            for (long j = 0; j < some; j++) sum[j] = s.shared ? b.shared[i * m + k + j] : 0.0f;
            for (long c = 0; c < s.chosen; c++) {
                const float share = weight[i * s.chosen + c];
                const float* row = b.rows + (i * s.chosen + c) * m + k;
                for (long j = 0; j < some; j++) sum[j] = __builtin_fmaf(share, row[j], sum[j]);
            }
            for (long j = 0; j < some; j++) x(i)[k + j] += sum[j];
        }
    }
    wait();
}

inline void embedding(const Model& model, long id, float* x) {
    const long m = model.s.m;
    if (!model.embed_bf16) {
        std::memcpy(x, static_cast<const float*>(model.embed) + id * m, m * sizeof(float));
        return;
    }
    const BF16* row = static_cast<const BF16*>(model.embed) + id * m;
    for (long i = 0; i < m; i++) {
        const uint32_t bits = static_cast<uint32_t>(row[i].bits) << 16;
        std::memcpy(x + i, &bits, sizeof bits);
    }
}

void step(const Model& model, const Call& a, Team t, Scratch& b) {
    const Sizes& s = model.s;
    const Ends& ends = model.ends[a.ends];
    const long m = s.m;
    for (long i = t.from(a.n); i < t.to(a.n); i++) {
        if (!a.ends) {
            embedding(model, a.ids[i], b.x + i * m);
            continue;
        }
        float* merged = b.merged + 2 * i * m;
        embedding(model, a.ids[i], merged);
        rms_norm(merged, ends.enorm, merged, m, s.eps);
        rms_norm(a.hidden + (a.sources ? a.sources[i] : i) * m, ends.hnorm, merged + m, m, s.eps);
    }
    wait();
    if (a.ends) {
        multiply(ends.eh_proj, 2 * m, m, a.n, [&](long i) { return b.merged + 2 * i * m; }, [&](long i) { return b.x + i * m; }, t.from(units(m)), t.to(units(m)));
        wait();
    }
    int64_t* routes = a.routes;
    for (long l = a.first; l < a.last; l++) {
        const Weights& w = model.blocks[l];
        attention(model, w, a, t, b, a.cache + l * s.num_blocks * s.block_size * (s.c + s.r));
        if (!a.wanted) return;
        if (w.gate.data) {
            experts(model, w, a, t, b, routes);
            if (routes) routes += a.n * s.chosen;
        } else {
            dense(model, w, a, t, b);
        }
    }
    const Wanted x{a.select, b.x, m};
    for (long i = t.from(a.wanted); i < t.to(a.wanted); i++) rms_norm(x(i), ends.norm, a.out + i * m, m, s.eps);
    if (!a.drawn) return;
    wait();
    multiply(ends.head, m, s.vocab, a.drawn, [&](long i) { return a.out + (a.rows ? a.rows[i] : i) * m; }, [&](long i) { return a.logits + i * s.vocab; },
        t.from(units(s.vocab)), t.to(units(s.vocab)));
    if (!a.tokens) return;
    wait();
    for (long i = t.from(a.drawn); i < t.to(a.drawn); i++) a.tokens[i] = rq_draw_row(a.logits + i * s.vocab, a.width, a.keys[i], a.temperatures[i]);
}

struct Advance {  // the trunk's call, then the module's
    const Plan* plan;
    const Line* lines;
    Call calls[2];
    int64_t *ids[2], *positions[2], *starts[2], *keys[2], *sources, *select, *kept;
    double* temperatures;
};

// The calls at the most rows, in memory from `start` on; the floats taken. Results: tokens of all rows, tokens kept of each sequence, drafts.
long prepare(const Model& model, const int64_t* numbers, float* cache, float* logits, int64_t* routes, int64_t* results, float* start, Advance& made) {
    long at = 0;
    auto take = [&](long count) {
        float* p = start ? start + at : nullptr;
        at += (count + 15) / 16 * 16;
        return p;
    };
    auto take_whole = [&](long count) { return reinterpret_cast<int64_t*>(take(2 * count)); };
    const Plan& plan = *(made.plan = reinterpret_cast<const Plan*>(numbers));
    made.lines = reinterpret_cast<const Line*>(numbers + sizeof(Plan) / 8);
    const long n = plan.rows, q = plan.sequences;
    made.temperatures = reinterpret_cast<double*>(take(2 * n)), made.sources = take_whole(n), made.select = take_whole(q), made.kept = results + n;
    for (int i = 0; i < 2; i++) {
        Call& call = made.calls[i] = Call{};
        call.ids = made.ids[i] = take_whole(n), call.positions = made.positions[i] = take_whole(n), call.starts = made.starts[i] = take_whole(n);
        call.keys = made.keys[i] = take_whole(n), call.temperatures = made.temperatures, call.out = take(n * model.s.m);
        call.n = n, call.wanted = call.drawn = i ? q : n, call.longest = plan.longest, call.width = plan.width, call.cache = cache;
        call.tables = reinterpret_cast<const int64_t*>(made.lines + q);
        call.tokens = i ? results + n + q : results;
    }
    Call &trunk = made.calls[0], &module = made.calls[1];
    trunk.last = plan.layers, trunk.logits = logits, trunk.routes = routes;
    module.first = plan.layers + plan.module, module.last = module.first + 1, module.ends = 1 + plan.module;
    module.hidden = trunk.out, module.sources = made.sources, module.select = made.select, module.logits = take(q * model.s.vocab);
    trunk.scratch = module.scratch = start ? start + at : nullptr;
    return at;
}

// The trunk's rows.
void begin(const Advance& a, const double* temperatures) {
    long n = 0;
    for (long i = 0; i < a.plan->sequences; i++)
        for (long j = 0; j < a.lines[i].rows; j++, n++) {
            const Line& line = a.lines[i];
            a.ids[0][n] = j ? line.draft : line.token, a.positions[0][n] = line.position + j, a.starts[0][n] = line.table;
            a.keys[0][n] = line.keys[j], a.temperatures[n] = temperatures[i];
        }
}

// The module's: those whose tokens are kept, up to the first that differs from the draft beside it.
void follow(Advance& a, const double* temperatures) {
    long row = 0, n = 0;
    for (long i = 0; i < a.plan->sequences; i++) {
        const Line& line = a.lines[i];
        const int64_t* tokens = a.calls[0].tokens + row;
        const long kept = line.rows > 1 && tokens[0] == line.draft ? 2 : 1;
        for (long j = 0; j < kept; j++, n++) {
            a.ids[1][n] = tokens[j] < 0 ? 0 : tokens[j];  // -1: its logits hold NaN
            a.positions[1][n] = line.position + j, a.starts[1][n] = line.table, a.sources[n] = row + j;
        }
        a.kept[i] = kept, a.select[i] = n - 1, a.keys[1][i] = line.keys[kept], a.temperatures[i] = temperatures[i];
        row += line.rows;
    }
    a.calls[1].n = n;
}

}  // namespace

extern "C" {

// Inputs up to which a matrix can be of the kind that rounds them: 0 where the machine has no such instructions.
long rq_most_rounded(void) { return CAN_ROUND ? MOST_ROUNDED : 0; }

void rq_linear(const float* x, const Matrix* w, float* y, long n, long k, long o) {
#pragma omp parallel
    {
        const Team t = team();
        multiply(*w, k, o, n, [&](long i) { return x + i * k; }, [&](long i) { return y + i * o; }, t.from(units(o)), t.to(units(o)));
    }
}

inline long most_threads() {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// One step in `room` floats of scratch. 0, or the floats that it needs where there is less room; nothing is done then.
long rq_step(const Model* model, const Call* call, long room) {
    Scratch all;
    const long need = carve(*model, *call, {0, most_threads()}, nullptr, all);
    if (need > room) return need;
#pragma omp parallel
    {
        Scratch b;
        const Team t = team();
        carve(*model, *call, t, call->scratch, b);
        step(*model, *call, t, b);
    }
    return 0;
}

// A step of decoding sequences and the drafts for their next one, in the same way: the trunk on every row, each with a draw, then MTP module
// `module` on the rows whose tokens are kept, with a draw behind the last of each sequence.
long rq_advance(const Model* model, const int64_t* plan, const double* temperatures, float* cache, float* logits, int64_t* routes, int64_t* results,
    float* scratch, long room) {
    Scratch all;
    Advance a;
    const Team most = {0, most_threads()};
    const long before = prepare(*model, plan, cache, logits, routes, results, nullptr, a);
    const long one = carve(*model, a.calls[0], most, nullptr, all), other = carve(*model, a.calls[1], most, nullptr, all);
    const long need = before + (one > other ? one : other);
    if (need > room) return need;
    prepare(*model, plan, cache, logits, routes, results, scratch, a);
    begin(a, temperatures);
#pragma omp parallel
    {
        Scratch b;
        const Team t = team();
        carve(*model, a.calls[0], t, a.calls[0].scratch, b);
        step(*model, a.calls[0], t, b);
        wait();
        if (t.me == 0) follow(a, temperatures);
        wait();
        carve(*model, a.calls[1], t, a.calls[1].scratch, b);
        step(*model, a.calls[1], t, b);
    }
    return 0;
}

}  // extern "C"
