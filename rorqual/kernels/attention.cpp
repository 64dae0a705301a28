// Causal attention of training, softmax(scale q k^T) v and its gradients, in one pass over blocks of query rows: scores live in the cache,
// and only their maximum and sum are kept for the gradient. Nothing above the diagonal's tiles is computed.
// A run is a stretch of one row whose positions see each other alone (packed samples); its arithmetic depends on its own positions only.
// Letters: b rows, s positions, h heads, d width of q and k, c width of v, t keys. q, k [b, h, s, d], v [b, h, s, c], out [b, s, h, c].

#include "tiles.h"

namespace {

constexpr long BLOCK = 64;  // query rows that share a pass over the keys
constexpr long LINE = 16;   // numbers in a line of the cache; rows of scores take an odd number of lines, so that a column spreads over the cache
constexpr int TALL = 8;     // rows of a tile; every block of rows is filled up to them
// TALL rows by n columns, n a multiple of WIDTH
template <bool ADD>
inline void strip(const float* a, long row, long step, const float* b, long ldb, float* c, long ldc, long n, long k) {
  for (int r = 0; r < TALL; r += SUMS) {
    const float* x = a + r * row;
    float* y = c + r * ldc;
    long j = 0;
    for (; j + WIDE * WIDTH <= n; j += WIDE * WIDTH) tile<SUMS, WIDE, ADD>(x, row, step, b + j, ldb, y + j, ldc, k);
    if (j + 2 * WIDTH <= n) tile<SUMS, 2, ADD>(x, row, step, b + j, ldb, y + j, ldc, k), j += 2 * WIDTH;
    if (j < n) tile<SUMS, 1, ADD>(x, row, step, b + j, ldb, y + j, ldc, k);
  }
}

// n rows of w, `ld` apart, -> rows of wp filled up with zeros, and zero rows up to `all`
void fill_up(const float* x, long ld, long n, long w, float* y, long wp, long all) {
  for (long i = 0; i < n; ++i) {
    std::memcpy(y + i * wp, x + i * ld, sizeof(float) * w);
    std::memset(y + i * wp + w, 0, sizeof(float) * (wp - w));
  }
  std::memset(y + n * wp, 0, sizeof(float) * wp * (all - n));
}

// A matrix where it lies, or a copy whose rows are filled up.
struct Rows {
  const float* at;
  long ld;
};

// n rows of w, `ld` apart, as rows of wp and at least `all` of them: copied into y where that takes filling up
inline Rows rows_of(const float* x, long ld, long n, long w, float* y, long wp, long all) {
  if (w == wp && n == all) return {x, ld};
  fill_up(x, ld, n, w, y, wp, all);
  return {y, wp};
}

// One block of query rows: where it starts, its rows, those filled up to whole tiles.
struct Block {
  long first, rows, padded;
  Block(long at, long t) : first(at), rows(least(BLOCK, t - at)), padded(up(rows, TALL)) {}
  long keys(long r, long t) const { return least(first + r + TALL, t); }  // seen by the tile of rows from r on
};

// x in the columns below `seen`, else zero
inline vec below(vec x, long column, long seen) {
  for (long i = 0; i < WIDTH; ++i)
    if (column + i >= seen) x[i] = 0.0f;
  return x;
}

// A row of scores becomes probabilities over the first `seen` columns, zero up to `end`; the largest score and one over the sum.
void softmax(float* p, long seen, long end, float scale, float* top, float* factor) {
  const long whole = seen / WIDTH * WIDTH;
  vec most = vec{} + p[0], sum = vec{};
  for (long j = 0; j < whole; j += WIDTH) {
    const vec x = take(p + j);
    most = x > most ? x : most;
  }
  float largest = p[0];
  for (int i = 0; i < WIDTH; ++i) largest = most[i] > largest ? most[i] : largest;
  for (long j = whole; j < seen; ++j) largest = p[j] > largest ? p[j] : largest;
  for (long j = 0; j < end; j += WIDTH) {
    vec e = exp_vec(scale * (take(p + j) - largest));
    if (j >= whole) e = below(e, j, seen);
    sum += e;
    put(p + j, e);
  }
  const float f = 1.0f / total(sum);
  for (long j = 0; j < seen; j += WIDTH) put(p + j, take(p + j) * f);
  *top = largest;
  *factor = f;
}

// A row of scores becomes probabilities again and the row e of their gradients that of the scores before scaling; both zero from `seen` to `end`.
void softmax_backward(float* p, float* e, long seen, long end, float scale, float top, float factor) {
  const long whole = seen / WIDTH * WIDTH;
  vec dots = vec{};
  for (long j = 0; j < end; j += WIDTH) {
    vec x = factor * exp_vec(scale * (take(p + j) - top)), y = take(e + j);
    if (j >= whole) x = below(x, j, seen), y = below(y, j, seen);
    dots += x * y;
    put(p + j, x);
    put(e + j, y);
  }
  const float dot = total(dots);
  for (long j = 0; j < end; j += WIDTH) put(e + j, scale * take(p + j) * (take(e + j) - dot));
}

// a [padded, w] times bt [w, tp] into x [padded, tp], tiles above the diagonal left out
void scores(const Block& block, const Rows& a, long w, const float* bt, float* x, long t, long tp) {
  const long end = up(least(block.first + block.rows, t), WIDTH);
  for (long j = 0; j < end; j += WIDE * WIDTH) {
    const long skipped = j > block.first ? (j - block.first) / TALL * TALL : 0, n = least(WIDE * WIDTH, end - j);
    for (long r = skipped; r < block.padded; r += TALL) strip<false>(a.at + r * a.ld, a.ld, 1, bt + j, tp, x + r * tp + j, tp, n, w);
  }
}

// c[key, n] += sum over the block's rows of x[row, key] b[row, n]
void add_to_keys(const Block& block, const float* x, long tp, const Rows& b, long n, float* c, long t) {
  const long end = block.keys(block.padded - TALL, t);
  for (long key = 0; key < end; key += TALL) {
    const long skipped = key > block.first ? (key - block.first) / TALL * TALL : 0;
    strip<true>(x + skipped * tp + key, 1, tp, b.at + skipped * b.ld, b.ld, c + key * n, n, n, block.rows - skipped);
  }
}

// the widths in memory and in the scratch of one task
struct Sizes {
  long d, c, dp, cp, tp;
  Sizes(long d, long c, long t) : d(d), c(c), dp(up(d, WIDTH)), cp(up(c, WIDTH)), tp(up(t, LINE) | LINE) {}
};

struct Run {
  long row, start, length;
};

inline Run run_of(const int64_t* runs, long i) { return {runs[3 * i], runs[3 * i + 1], runs[3 * i + 2]}; }

void forward(const float* q, const float* k, const float* v, float* out, long ld_out, float* top, float* factor, long t, const Sizes& z, float scale,
             float* scratch) {
  float* kt = scratch;
  float* values = kt + z.d * z.tp;
  float* rows = values + t * z.cp;
  float* x = rows + BLOCK * z.d;
  float* o = x + BLOCK * z.tp;
  turn_over(k, t, z.d, kt, z.tp);
  const Rows all_v = rows_of(v, z.c, t, z.c, values, z.cp, t);
  for (long at = 0; at < t; at += BLOCK) {
    const Block block(at, t);
    scores(block, rows_of(q + at * z.d, z.d, block.rows, z.d, rows, z.d, block.padded), z.d, kt, x, t, z.tp);
    for (long r = 0; r < block.padded; ++r) {
      float* p = x + r * z.tp;
      const long end = up(block.keys(r / TALL * TALL, t), WIDTH);
      if (r < block.rows)
        softmax(p, at + r + 1, end, scale, top + at + r, factor + at + r);
      else
        std::memset(p, 0, sizeof(float) * end);
    }
    for (long r = 0; r < block.padded; r += TALL) {
      strip<false>(x + r * z.tp, z.tp, 1, all_v.at, all_v.ld, o, z.cp, z.cp, block.keys(r, t));
      for (long i = 0; i < least(TALL, block.rows - r); ++i) std::memcpy(out + (at + r + i) * ld_out, o + i * z.cp, sizeof(float) * z.c);
    }
  }
}

void backward(const float* q, const float* k, const float* v, const float* d_out, long ld_out, const float* top, const float* factor, float* dq,
              float* dk, float* dv, long t, const Sizes& z, float scale, float* scratch) {
  const long rows_up = up(t, TALL);
  float* kt = scratch;
  float* vt = kt + z.d * z.tp;
  float* keys = vt + z.c * z.tp;
  float* sum_k = keys + t * z.dp;
  float* sum_v = sum_k + rows_up * z.dp;
  float* wide = sum_v + rows_up * z.cp;
  float* dense = wide + BLOCK * z.dp;
  float* x = dense + BLOCK * z.cp;
  float* g = x + BLOCK * z.tp;
  float* o = g + BLOCK * z.tp;
  turn_over(k, t, z.d, kt, z.tp);
  turn_over(v, t, z.c, vt, z.tp);
  const Rows all_k = rows_of(k, z.d, t, z.d, keys, z.dp, t);
  std::memset(sum_k, 0, sizeof(float) * rows_up * z.dp);
  std::memset(sum_v, 0, sizeof(float) * rows_up * z.cp);
  for (long at = 0; at < t; at += BLOCK) {
    const Block block(at, t);
    const float *some_q = q + at * z.d, *above = d_out + at * ld_out;
    const Rows wide_q = rows_of(some_q, z.d, block.rows, z.d, wide, z.dp, block.padded);
    const Rows wide_above = rows_of(above, ld_out, block.rows, z.c, dense, z.cp, block.padded);
    scores(block, wide_q, z.d, kt, x, t, z.tp);
    scores(block, wide_above, z.c, vt, g, t, z.tp);
    for (long r = 0; r < block.padded; ++r) {
      float *p = x + r * z.tp, *e = g + r * z.tp;
      const long end = up(block.keys(r / TALL * TALL, t), WIDTH);
      if (r < block.rows) {
        softmax_backward(p, e, at + r + 1, end, scale, top[at + r], factor[at + r]);
      } else {
        std::memset(p, 0, sizeof(float) * end);
        std::memset(e, 0, sizeof(float) * end);
      }
    }
    add_to_keys(block, x, z.tp, wide_above, z.cp, sum_v, t);
    add_to_keys(block, g, z.tp, wide_q, z.dp, sum_k, t);
    for (long r = 0; r < block.padded; r += TALL) {
      strip<false>(g + r * z.tp, z.tp, 1, all_k.at, all_k.ld, o, z.dp, z.dp, block.keys(r, t));
      for (long i = 0; i < least(TALL, block.rows - r); ++i) std::memcpy(dq + (at + r + i) * z.d, o + i * z.dp, sizeof(float) * z.d);
    }
  }
  for (long i = 0; i < t; ++i) {
    std::memcpy(dk + i * z.d, sum_k + i * z.dp, sizeof(float) * z.d);
    std::memcpy(dv + i * z.c, sum_v + i * z.cp, sizeof(float) * z.c);
  }
}

// Calls `one(run, head, scratch)` for every head of every run, with `size(longest run)` floats of scratch a thread; false without memory for them.
template <class Size, class One>
bool for_each(const int64_t* runs, long n, long h, Size size, One one) {
  long longest = 0;
  for (long i = 0; i < n; ++i) longest = runs[3 * i + 2] > longest ? runs[3 * i + 2] : longest;
  return with_scratch(n * h, size(longest), [&](long i, float* scratch) { one(run_of(runs, i / h), i % h, scratch); });
}

}  // namespace

extern "C" {

// runs [n, 3]: row, first position, positions. top and factor [b, h, s]: the largest score of a row, unscaled, and one over the sum of exponentials.
int rq_causal_attention(const float* q, const float* k, const float* v, const int64_t* runs, long n, float* out, float* top, float* factor, long s, long h,
                        long d, long c, float scale) {
  const auto size = [&](long t) {
    const Sizes z(d, c, t);
    return z.d * z.tp + t * z.cp + BLOCK * (z.d + z.tp) + TALL * z.cp;
  };
  return for_each(runs, n, h, size, [&](const Run& run, long head, float* scratch) {
    const long at = (run.row * h + head) * s + run.start;
    forward(q + at * d, k + at * d, v + at * c, out + ((run.row * s + run.start) * h + head) * c, h * c, top + at, factor + at, run.length,
            Sizes(d, c, run.length), scale, scratch);
  });
}

int rq_causal_attention_backward(const float* q, const float* k, const float* v, const int64_t* runs, long n, const float* d_out, const float* top,
                                 const float* factor, float* dq, float* dk, float* dv, long s, long h, long d, long c, float scale) {
  const auto size = [&](long t) {
    const Sizes z(d, c, t);
    const long rows = up(t, TALL);
    return (z.d + z.c) * z.tp + t * z.dp + rows * (z.dp + z.cp) + BLOCK * (z.dp + z.cp + 2 * z.tp) + TALL * z.dp;
  };
  return for_each(runs, n, h, size, [&](const Run& run, long head, float* scratch) {
    const long at = (run.row * h + head) * s + run.start;
    backward(q + at * d, k + at * d, v + at * c, d_out + ((run.row * s + run.start) * h + head) * c, h * c, top + at, factor + at, dq + at * d, dk + at * d,
             dv + at * c, run.length, Sizes(d, c, run.length), scale, scratch);
  });
}
}
