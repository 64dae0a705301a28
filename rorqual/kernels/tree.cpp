// Attention of MLA over sequences that share beginnings, which stand once: softmax(scale q k^T) v, without gradients. A part is a stretch of
// tokens that continues a path; its tokens see the whole path before it, and one another causally. No padding, no mask, no copies of heads:
// rotated queries, keys and values of one head of one part exist in scratch alone. A token's result depends on its own path only, and its sums
// run over the keys in the order of positions, whatever stands beside it.
// Letters: n tokens, h heads, d width of q and k, r of them rotated (the last ones), c width of v, t keys of a part.

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
  for (; i + WIDTH <= n; i += WIDTH) put(y + i, take(x + i));
  for (; i < n; ++i) y[i] = x[i];
}

// Asks for n numbers that are read soon: those of one head lie apart, and the processor does not guess them.
inline void fetch(const float* x, long n) {
  for (long i = 0; i < n; i += WIDTH) __builtin_prefetch(x + i);
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
    const long some = least(QUERIES, count - r), vectors = up(some, WIDTH) / WIDTH, end = before + r + some;  // keys that any of them sees
    const auto limit = [&](long v) { return least(before + r + (v + 1) * WIDTH, end); };                      // keys that vector v sees
    side_by_side([&](long i) { return in.q + ((first + r + i) * z.h + head) * z.d; }, some, z.d, qt);
    for (long v = 0; v < vectors; ++v) {
      float* p = qt + v * WIDTH;
      for (long e = 0; e < nope; ++e) put(p + e * QUERIES, take(p + e * QUERIES) * in.scale);
      vec c[2];
      for (long e = 0; e < pairs; ++e) {
        for (long i = 0; i < WIDTH; ++i) {
          const long token = first + r + least(v * WIDTH + i, some - 1);
          c[0][i] = in.cos[token * pairs + e], c[1][i] = in.sin[token * pairs + e];
        }
        float *one = p + (nope + 2 * e) * QUERIES, *other = one + QUERIES;
        const vec a = take(one) * in.scale, b = take(other) * in.scale;
        put(one, a * c[0] - b * c[1]);
        put(other, a * c[1] + b * c[0]);
      }
    }
    for (long key = 0, v = 0; key < end; key += KEYS) {
      while (limit(v) <= key) ++v;  // no query of vector v sees this tile
      strip<false>(keys + key * z.d, z.d, 1, qt + v * WIDTH, x + key * QUERIES + v * WIDTH, KEYS, vectors - v, z.d);
    }
    vec factor[WIDE];
    for (long v = 0; v < vectors; ++v) {
      float* p = x + v * WIDTH;
      const long all = before + r + v * WIDTH + 1;  // keys that every query of the vector sees
      vec seen, top = take(p);
      for (int i = 0; i < WIDTH; ++i) seen[i] = static_cast<float>(i);
      long key = 1;
      for (; key < all; ++key) {
        const vec s = take(p + key * QUERIES);
        top = s > top ? s : top;
      }
      for (; key < limit(v); ++key) {
        vec s = take(p + key * QUERIES);
        s = seen < static_cast<float>(key - all + 1) ? vec{} - 1e30f : s;
        put(p + key * QUERIES, s);
        top = s > top ? s : top;
      }
      vec sum = vec{};
      for (key = 0; key < all; ++key) {
        const vec s = exp_vec(take(p + key * QUERIES) - top);
        put(p + key * QUERIES, s);
        sum += s;
      }
      for (; key < limit(v); ++key) {
        vec s = take(p + key * QUERIES);
        s = s == -1e30f ? vec{} : exp_vec(s - top);
        put(p + key * QUERIES, s);
        sum += s;
      }
      factor[v] = 1.0f / sum;
    }
    for (long v = 0, key = 0; v < vectors; key = limit(v++)) {
      const float* p = x + key * QUERIES + v * WIDTH;
      if (v == 0)
        strip<false>(values, 1, z.c, p, o, z.c, vectors, limit(0));
      else
        strip<true>(values + key * z.c, 1, z.c, p, o + v * WIDTH, z.c, vectors - v, limit(v) - key);
    }
    for (long v = 0; v < vectors; ++v)
      for (long e = 0; e < z.c; ++e) {
        float* p = o + e * QUERIES + v * WIDTH;
        put(p, take(p) * factor[v]);
      }
    const auto to = [&](long i) { return out + ((first + r + i) * z.h + head) * z.c; };
    in_rows(o, some, z.c, [&](long i, long e, vec x) { put(to(i) + e, x); }, [&](long i, long e, float x) { to(i)[e] = x; });
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
#pragma omp parallel for schedule(static)
  for (long i = 0; i < n; ++i) turn(k_rope + i * ld_k, cos + i * (r / 2), sin + i * (r / 2), turned + i * r, r / 2);
  return with_scratch(n_parts * h, z.scratch(longest), [&](long i, float* scratch) {
    const int64_t *part = parts + i / h * 3, *last = spans + 2 * (part[2] - 1);
    attend({q, kv, turned, cos, sin, scale}, part[0], last[1], spans + 2 * part[1], part[2] - part[1], i % h, z, out, scratch);
  });
}
}
