// The matrices before and behind MLA's attention, over up to 48 tokens at a time, so that what lies between them stays in the cache; weights are
// read as they are stored. Without gradients. A token's result depends on no other token.
// Letters: n tokens, m model width, a width of the query latent, c of the key latent, r rotated numbers, q and w outputs of queries, of keys and values.

#include "strips.h"

namespace {

// x [k, ACROSS] becomes weight * (x / sqrt(mean(x^2) + eps)), each column by itself
inline void norm(float* x, const float* weight, long k, long vectors, float eps, float* y) {
  for (long v = 0; v < vectors; ++v) {
    vec sum = vec{};
    for (long i = 0; i < k; ++i) {
      const vec a = take(x + i * ACROSS + v * WIDTH);
      sum += a * a;
    }
    vec f;
    for (int j = 0; j < WIDTH; ++j) f[j] = 1.0f / std::sqrt(sum[j] / k + eps);
    for (long i = 0; i < k; ++i) put(y + i * ACROSS + v * WIDTH, take(x + i * ACROSS + v * WIDTH) * f * weight[i]);
  }
}

inline void write(const float* x, long n, long k, float* out) {
  in_rows(x, n, k, [&](long j, long i, vec y) { put(out + j * k + i, y); }, [&](long j, long i, float y) { out[j * k + i] = y; });
}

// Calls `one(first, tokens, scratch)` for blocks of at most ACROSS of n tokens; false without memory for `size` floats a thread.
template <class One>
bool for_blocks(long n, long size, One one) {
  return with_scratch((n + ACROSS - 1) / ACROSS, size, [&](long block, float* scratch) {
    one(block * ACROSS, least(ACROSS, n - block * ACROSS), scratch);
  });
}

}  // namespace

extern "C" {

// h = norm(x); q = q_b norm(q_a h), or q_b h where q_a is null; [latent ; k_rope] = kv_a h; kv = kv_b norm(latent).
int rq_attention_inputs(const float* x, const float* input_norm, const float* q_a, const float* q_norm, const float* q_b, const float* kv_a,
                        const float* kv_norm, const float* kv_b, float eps, float* q, float* kv, float* k_rope, long n, long m, long a, long c,
                        long r, long q_width, long kv_width) {
  const long widest = q_width > kv_width ? q_width : kv_width;
  return for_blocks(n, ACROSS * (m + a + c + r + widest), [&](long at, long some, float* scratch) {
    float* h = scratch;
    float* latent = h + m * ACROSS;
    float* keys = latent + a * ACROSS;
    float* y = keys + (c + r) * ACROSS;
    const long vectors = side_by_side([&](long j) { return x + (at + j) * m; }, some, m, h);
    norm(h, input_norm, m, vectors, eps, h);
    if (q_a) {
      strip<false>(q_a, m, 1, h, latent, a, vectors, m);
      norm(latent, q_norm, a, vectors, eps, latent);
    }
    strip<false>(q_b, q_a ? a : m, 1, q_a ? latent : h, y, q_width, vectors, q_a ? a : m);
    write(y, some, q_width, q + at * q_width);
    strip<false>(kv_a, m, 1, h, keys, c + r, vectors, m);
    write(keys + c * ACROSS, some, r, k_rope + at * r);
    norm(keys, kv_norm, c, vectors, eps, keys);
    strip<false>(kv_b, c, 1, keys, y, kv_width, vectors, c);
    write(y, some, kv_width, kv + at * kv_width);
  });
}

// out [n, o] += x [n, k] w^T, w [o, k]
int rq_add_product(const float* x, const float* w, float* out, long n, long k, long o) {
  return for_blocks(n, ACROSS * (k + o), [&](long at, long some, float* scratch) {
    float* y = scratch + k * ACROSS;
    const long vectors = side_by_side([&](long j) { return x + (at + j) * k; }, some, k, scratch);
    strip<false>(w, k, 1, scratch, y, o, vectors, k);
    float* to = out + at * o;
    in_rows(y, some, o, [&](long j, long i, vec z) { put(to + j * o + i, take(to + j * o + i) + z); },
            [&](long j, long i, float z) { to[j * o + i] += z; });
  });
}
}
