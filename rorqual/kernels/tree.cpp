// Attention of MLA over sequences that share beginnings, which stand once: softmax(scale q k^T) v, without gradients. A part is a stretch of
// tokens that continues a path; its tokens see the whole path before it, and one another causally. No padding, no mask, no copies of heads:
// rotated queries, keys and values of one head of one part exist in scratch alone. A token's result depends on its own path only, and its sums
// run over the keys in the order of positions, whatever stands beside it.
// Letters: n tokens, h heads, d width of q and k, r of them rotated (the last ones), c width of v, t keys of a part.

#include <cstdlib>

#include "strips.h"

namespace {

constexpr long KEYS = SUMS;    // keys of a tile
constexpr long QUERIES = ACROSS;
constexpr long AHEAD = 8;  // tokens between a request for memory and its use

inline void turn(const float* x, const float* c, const float* s, float* y, long pairs) {
  for (long p = 0; p < pairs; ++p) {
    const float a = x[2 * p], b = x[2 * p + 1];
    y[2 * p] = a * c[p] - b * s[p];
    y[2 * p + 1] = a * s[p] + b * c[p];
  }
}

inline void copy(const float* x, float* y, long n) {
  long i = 0;
  for (; i + LANES <= n; i += LANES) store(y + i, load(x + i));
  for (; i < n; ++i) y[i] = x[i];
}

// Asks for n numbers that are read soon: those of one head lie apart, and the processor does not guess them.
inline void fetch(const float* x, long n) {
  for (long i = 0; i < n; i += LANES) __builtin_prefetch(x + i);
}

struct Widths {
  long h, d, r, c;
  Widths(long h, long d, long r, long c) : h(h), d(d), r(r), c(c) {}
  long scratch(long t) const { return up(t, KEYS) * (d + c + QUERIES) + QUERIES * (d + c); }
};

struct Heads {
  const float *q, *kv, *turned, *cos, *sin;
  float scale;
};

// One head of one part, the `count` tokens from `first` on, which are the last of what the spans (first token, tokens) hold.
// A block of queries stands side by side in lanes: scores and probabilities are [key, query], the maximum and the sum of a query one lane.
void attend(const Heads& in, long first, long count, const int64_t* spans, long n_spans, long head, const Widths& z, float* out, float* scratch) {
  long t = 0;
  for (long i = 0; i < n_spans; ++i) t += spans[2 * i + 1];
  const long tp = up(t, KEYS), nope = z.d - z.r, wide = nope + z.c, pairs = z.r / 2, before = t - count;
  float* keys = scratch;
  float* values = keys + tp * z.d;
  float* x = values + tp * z.c;
  float* qt = x + tp * ACROSS;
  float* o = qt + z.d * QUERIES;
  long at = 0;
  for (long i = 0; i < n_spans; ++i)
    for (long token = spans[2 * i], end = token + spans[2 * i + 1]; token < end; ++token, ++at) {
      const float* from = in.kv + (token * z.h + head) * wide;
      fetch(from + AHEAD * z.h * wide, wide);
      copy(from, keys + at * z.d, nope);
      copy(in.turned + token * z.r, keys + at * z.d + nope, z.r);
      copy(from + nope, values + at * z.c, z.c);
    }
  std::memset(keys + t * z.d, 0, sizeof(float) * (tp - t) * z.d);
  for (long r = 0; r < count; r += QUERIES) {
    const long some = least(QUERIES, count - r), vectors = up(some, LANES) / LANES, end = before + r + some;  // keys that any of them sees
    const auto limit = [&](long v) { return least(before + r + (v + 1) * LANES, end); };                      // keys that vector v sees
    side_by_side([&](long i) { return in.q + ((first + r + i) * z.h + head) * z.d; }, some, z.d, qt);
    for (long v = 0; v < vectors; ++v) {
      float* p = qt + v * LANES;
      for (long e = 0; e < nope; ++e) store(p + e * QUERIES, load(p + e * QUERIES) * in.scale);
      lanes c[2];
      for (long e = 0; e < pairs; ++e) {
        for (long i = 0; i < LANES; ++i) {
          const long token = first + r + least(v * LANES + i, some - 1);
          c[0][i] = in.cos[token * pairs + e], c[1][i] = in.sin[token * pairs + e];
        }
        float *one = p + (nope + 2 * e) * QUERIES, *other = one + QUERIES;
        const lanes a = load(one) * in.scale, b = load(other) * in.scale;
        store(one, a * c[0] - b * c[1]);
        store(other, a * c[1] + b * c[0]);
      }
    }
    for (long key = 0, v = 0; key < end; key += KEYS) {
      while (limit(v) <= key) ++v;  // no query of vector v sees this tile
      strip<false>(keys + key * z.d, z.d, 1, qt + v * LANES, x + key * QUERIES + v * LANES, KEYS, vectors - v, z.d);
    }
    lanes factor[WIDE];
    for (long v = 0; v < vectors; ++v) {
      float* p = x + v * LANES;
      const long all = before + r + v * LANES + 1;  // keys that every query of the vector sees
      lanes seen, top = load(p);
      for (int i = 0; i < LANES; ++i) seen[i] = static_cast<float>(i);
      long key = 1;
      for (; key < all; ++key) {
        const lanes s = load(p + key * QUERIES);
        top = s > top ? s : top;
      }
      for (; key < limit(v); ++key) {
        lanes s = load(p + key * QUERIES);
        s = seen < static_cast<float>(key - all + 1) ? lanes{} - 1e30f : s;
        store(p + key * QUERIES, s);
        top = s > top ? s : top;
      }
      lanes sum = lanes{};
      for (key = 0; key < all; ++key) {
        const lanes s = exponential(load(p + key * QUERIES) - top);
        store(p + key * QUERIES, s);
        sum += s;
      }
      for (; key < limit(v); ++key) {
        lanes s = load(p + key * QUERIES);
        s = s == -1e30f ? lanes{} : exponential(s - top);
        store(p + key * QUERIES, s);
        sum += s;
      }
      factor[v] = 1.0f / sum;
    }
    for (long v = 0, key = 0; v < vectors; key = limit(v++)) {
      const float* p = x + key * QUERIES + v * LANES;
      if (v == 0)
        strip<false>(values, 1, z.c, p, o, z.c, vectors, limit(0));
      else
        strip<true>(values + key * z.c, 1, z.c, p, o + v * LANES, z.c, vectors - v, limit(v) - key);
    }
    for (long v = 0; v < vectors; ++v)
      for (long e = 0; e < z.c; ++e) {
        float* p = o + e * QUERIES + v * LANES;
        store(p, load(p) * factor[v]);
      }
    const auto to = [&](long i) { return out + ((first + r + i) * z.h + head) * z.c; };
    in_rows(o, some, z.c, [&](long i, long e, lanes x) { store(to(i) + e, x); }, [&](long i, long e, float x) { to(i)[e] = x; });
  }
}

}  // namespace

extern "C" {

// q [n, h, d] and k_rope [n, r] unrotated, kv [n, h, d - r + c], cos and sin [n, r / 2], turned [n, r] for the rotated keys, out [n, h, c].
// parts [p, 3]: first token, first of its spans, end of its spans; the last span is the part itself. spans [m, 2]: first token, tokens.
// 0 where there is no memory for the scratch of one part of `longest` keys.
int rq_tree_attention(const float* q, const float* kv, const float* k_rope, long ld_k, const float* cos, const float* sin, float* turned,
                      const int64_t* parts, long n_parts, const int64_t* spans, long longest, float* out, long n, long h, long d, long r, long c,
                      float scale) {
  const Widths z(h, d, r, c);
  const long bytes = up(sizeof(float) * z.scratch(longest), 64);
  bool enough = true;
#pragma omp parallel
  {
    float* scratch = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (!scratch) {
#pragma omp atomic write
      enough = false;
    }
#pragma omp for schedule(static)
    for (long i = 0; i < n; ++i) turn(k_rope + i * ld_k, cos + i * (r / 2), sin + i * (r / 2), turned + i * r, r / 2);
    if (enough) {
#pragma omp for schedule(dynamic)
      for (long i = 0; i < n_parts * h; ++i) {
        const int64_t *part = parts + i / h * 3, *last = spans + 2 * (part[2] - 1);
        attend({q, kv, turned, cos, sin, scale}, part[0], last[1], spans + 2 * part[1], part[2] - part[1], i % h, z, out, scratch);
      }
    }
    std::free(scratch);
  }
  return enough;
}
}
