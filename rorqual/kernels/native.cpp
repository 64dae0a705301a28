// FP32 CPU kernels behind a plain C ABI: no torch headers, so that it compiles in seconds. native.py builds, loads and tests it.
// Every function writes its whole output. Rows are independent: a row's arithmetic never depends on how many rows there are
// or on the number of threads. Sums over rows go through a fixed number of chunks for the same reason.
// Letters: n tokens, w rows, m model width, f FFN width, k chosen experts, h heads, d head width, r rotary width, v vocabulary.

#include "lanes.h"

namespace {

inline float sigmoid_(float x) { return 1.0f / (1.0f + exp_(-x)); }

inline float from_bf16(uint16_t x) {
  union { uint32_t i; float f; } u;
  u.i = static_cast<uint32_t>(x) << 16;
  return u.f;
}

inline uint16_t to_bf16(float x) {  // round to nearest, ties to even; NaN stays NaN
  union { uint32_t i; float f; } u;
  u.f = x;
  if (x != x) return static_cast<uint16_t>((u.i >> 16) | 0x40);
  return static_cast<uint16_t>((u.i + 0x7fff + ((u.i >> 16) & 1)) >> 16);
}

inline float load_(const float* p, long i) { return p[i]; }
inline float load_(const uint16_t* p, long i) { return from_bf16(p[i]); }
inline void store_(float* p, long i, float x) { p[i] = x; }
inline void store_(uint16_t* p, long i, float x) { p[i] = to_bf16(x); }

template <class T>
void adamw_(float* __restrict p, const float* __restrict g, T* __restrict first, T* __restrict second, long n, float grad_scale, float beta1,
            float beta2, float decay, float step_size, float root, float eps) {
#pragma omp parallel for schedule(static)
  for (long i = 0; i < n; ++i) {
    const float grad = g[i] * grad_scale;
    const float a = load_(first, i);
    const float m = a + (grad - a) * (1.0f - beta1);
    const float v = load_(second, i) * beta2 + grad * grad * (1.0f - beta2);
    store_(first, i, m);
    store_(second, i, v);
    p[i] = p[i] * decay - step_size * m / (std::sqrt(v) / root + eps);
  }
}

// Turns one row of adjacent pairs; `back` turns the other way.
inline void turn(const float* x, const float* c, const float* s, float* y, long pairs, bool back) {
  for (long p = 0; p < pairs; ++p) {
    const float a = x[2 * p], b = x[2 * p + 1], sn = back ? -s[p] : s[p];
    y[2 * p] = a * c[p] - b * sn;
    y[2 * p + 1] = a * sn + b * c[p];
  }
}

}  // namespace

extern "C" {

void rq_rms_norm(const float* x, long ldx, const float* w, float* y, float* rstd, long n, long m, float eps) {
#pragma omp parallel for schedule(static)
  for (long i = 0; i < n; ++i) {
    const float* row = x + i * ldx;
    float* out = y + i * m;
    const float r = 1.0f / std::sqrt(sum_over(m, [&](long j) { return row[j] * row[j]; }) / m + eps);
    rstd[i] = r;
    for (long j = 0; j < m; ++j) out[j] = w[j] * (row[j] * r);
  }
}

// dw_parts [chunks, m]: each chunk of rows sums its own part, in row order.
void rq_rms_norm_backward(const float* dy, const float* x, long ldx, const float* w, const float* rstd, float* dx, float* dw_parts, long n,
                          long m, long chunks) {
#pragma omp parallel for schedule(static)
  for (long c = 0; c < chunks; ++c) {
    float* dw = dw_parts + c * m;
    std::memset(dw, 0, sizeof(float) * m);
    for (long i = n * c / chunks; i < n * (c + 1) / chunks; ++i) {
      const float *row = x + i * ldx, *d = dy + i * m;
      float* out = dx + i * m;
      const float r = rstd[i];
      const float dot = sum_over(m, [&](long j) { return d[j] * w[j] * row[j]; }) * r * r * r / m;
      for (long j = 0; j < m; ++j) {
        dw[j] += d[j] * row[j] * r;
        out[j] = d[j] * w[j] * r - row[j] * dot;
      }
    }
  }
}

void rq_swiglu(const float* gate, const float* up, long ld, float* out, long n, long f) {
#pragma omp parallel for schedule(static)
  for (long i = 0; i < n; ++i) {
    const float *g = gate + i * ld, *u = up + i * ld;
    float* o = out + i * f;
    for (long j = 0; j < f; ++j) o[j] = g[j] * sigmoid_(g[j]) * u[j];
  }
}

// Gradients of gate and up with row stride ld_d, and the forward's result anew.
void rq_swiglu_backward(const float* d_out, const float* gate, const float* up, long ld, float* d_gate, float* d_up, long ld_d, float* act, long n,
                        long f) {
#pragma omp parallel for schedule(static)
  for (long i = 0; i < n; ++i) {
    const float *g = gate + i * ld, *u = up + i * ld, *d = d_out + i * f;
    float *dg = d_gate + i * ld_d, *du = d_up + i * ld_d, *a = act + i * f;
    for (long j = 0; j < f; ++j) {
      const float s = sigmoid_(g[j]), silu = g[j] * s;
      dg[j] = d[j] * u[j] * s * (1.0f + g[j] * (1.0f - s));
      du[j] = d[j] * silu;
      a[j] = silu * u[j];
    }
  }
}

// q_in [b, s, h, nope + r], kv [b, s, h, nope + c], k_rope [b * s] rows of stride ld_k -> head-major q, k [b, h, s, nope + r] rotated and
// v [b, h, s, c].
void rq_mla_heads(const float* q_in, const float* kv, const float* k_rope, long ld_k, const float* cos, const float* sin, float* q, float* k, float* v,
                  long b, long s, long h, long nope, long r, long c) {
  const long d = nope + r;
#pragma omp parallel for schedule(static)
  for (long i = 0; i < b * s; ++i) {
    const float *cs = cos + i * (r / 2), *sn = sin + i * (r / 2);
    const float* turned = k + (i / s * h * s + i % s) * d + nope;  // the shared key, rotated once, in the first head's place
    for (long a = 0; a < h; ++a) {
      const long row = (i / s * h + a) * s + i % s;
      const float *from_q = q_in + (i * h + a) * d, *from_kv = kv + (i * h + a) * (nope + c);
      std::memcpy(q + row * d, from_q, sizeof(float) * nope);
      turn(from_q + nope, cs, sn, q + row * d + nope, r / 2, false);
      std::memcpy(k + row * d, from_kv, sizeof(float) * nope);
      if (a == 0)
        turn(k_rope + i * ld_k, cs, sn, k + row * d + nope, r / 2, false);
      else
        std::memcpy(k + row * d + nope, turned, sizeof(float) * r);
      std::memcpy(v + row * c, from_kv + nope, sizeof(float) * c);
    }
  }
}

// Gradients of the above; dq, dk, dv with element strides of batch, head and position (the last dimension is dense).
void rq_mla_heads_backward(const float* dq, long q_b, long q_h, long q_s, const float* dk, long k_b, long k_h, long k_s, const float* dv, long v_b,
                           long v_h, long v_s, const float* cos, const float* sin, float* dq_in, float* dkv, float* dk_rope, long b, long s, long h,
                           long nope, long r, long c) {
  const long d = nope + r;
#pragma omp parallel for schedule(static)
  for (long i = 0; i < b * s; ++i) {
    const long batch = i / s, at = i % s;
    const float *cs = cos + i * (r / 2), *sn = sin + i * (r / 2);
    float sum[1024];
    for (long j = 0; j < r; ++j) sum[j] = 0.0f;
    for (long a = 0; a < h; ++a) {
      const float *gq = dq + batch * q_b + a * q_h + at * q_s, *gk = dk + batch * k_b + a * k_h + at * k_s, *gv = dv + batch * v_b + a * v_h + at * v_s;
      float *oq = dq_in + (i * h + a) * d, *okv = dkv + (i * h + a) * (nope + c);
      std::memcpy(oq, gq, sizeof(float) * nope);
      turn(gq + nope, cs, sn, oq + nope, r / 2, true);
      std::memcpy(okv, gk, sizeof(float) * nope);
      std::memcpy(okv + nope, gv, sizeof(float) * c);
      for (long j = 0; j < r; ++j) sum[j] += gk[nope + j];
    }
    turn(sum, cs, sn, dk_rope + i * r, r / 2, true);
  }
}

// Stable counting sort of [n * k] expert numbers.
void rq_sort_by_expert(const int64_t* indices, long n, long k, long experts, int64_t* source, int64_t* slots, int32_t* offs) {
  for (long e = 0; e < experts; ++e) offs[e] = 0;
  for (long i = 0; i < n * k; ++i) ++offs[indices[i]];
  int32_t end = 0;
  for (long e = 0; e < experts; ++e) {
    const int32_t count = offs[e];
    offs[e] = end;
    end += count;
  }
  for (long i = 0; i < n * k; ++i) {
    const int32_t slot = offs[indices[i]]++;
    source[slot] = i / k;
    slots[i] = slot;
  }
}

void rq_gather_rows(const float* x, const int64_t* source, float* out, long w, long m) {
#pragma omp parallel for schedule(static)
  for (long i = 0; i < w; ++i) std::memcpy(out + i * m, x + source[i] * m, sizeof(float) * m);
}

// out[t] = sum_j weights[t, j] rows[slots[t, j]]; without weights a plain sum (the gradient of gather_rows).
void rq_combine_rows(const float* rows, const float* weights, const int64_t* slots, float* out, long n, long k, long m) {
#pragma omp parallel for schedule(static)
  for (long t = 0; t < n; ++t) {
    float* o = out + t * m;
    for (long j = 0; j < k; ++j) {
      const float* row = rows + slots[t * k + j] * m;
      const float g = weights ? weights[t * k + j] : 1.0f;
      if (j == 0)
        for (long i = 0; i < m; ++i) o[i] = g * row[i];
      else
        for (long i = 0; i < m; ++i) o[i] += g * row[i];
    }
  }
}

void rq_combine_rows_backward(const float* d_out, const float* rows, const float* weights, const int64_t* slots, float* d_rows, float* d_weights,
                              long n, long k, long m) {
#pragma omp parallel for schedule(static)
  for (long t = 0; t < n; ++t) {
    const float* d = d_out + t * m;
    for (long j = 0; j < k; ++j) {
      const float g = weights[t * k + j];
      const float* row = rows + slots[t * k + j] * m;
      float* out = d_rows + slots[t * k + j] * m;
      for (long i = 0; i < m; ++i) out[i] = g * d[i];
      d_weights[t * k + j] = sum_over(m, [&](long i) { return d[i] * row[i]; });
    }
  }
}

// logits [n, v] become scale * (softmax - onehot), rows without a target (negative) zero; nll[i] = -log softmax[target].
void rq_softmax_cross_entropy(float* logits, const int64_t* targets, float scale, float* nll, long n, long v) {
#pragma omp parallel for schedule(static)
  for (long i = 0; i < n; ++i) {
    float* row = logits + i * v;
    const int64_t target = targets[i];
    if (target < 0) {
      nll[i] = 0.0f;
      std::memset(row, 0, sizeof(float) * v);
      continue;
    }
    const float top = max_of(row, v);
    const float chosen = row[target] - top;
    const float sum = sum_over(v, [&](long j) { return row[j] = exp_(row[j] - top); });
    nll[i] = std::log(sum) - chosen;
    const float factor = scale / sum;
    for (long j = 0; j < v; ++j) row[j] *= factor;
    row[target] -= scale;
  }
}

// The k largest of each row, largest first, the lowest index first among equals; with NaN in the row, some k indices.
void rq_top_k(const float* x, float* values, int64_t* indices, long n, long e, long k) {
#pragma omp parallel for schedule(static)
  for (long i = 0; i < n; ++i) {
    const float* row = x + i * e;
    float* best = values + i * k;
    int64_t* at = indices + i * k;
    long filled = 0;
    for (long j = 0; j < e; ++j) {
      const float value = row[j];
      if (filled == k && !(value > best[k - 1])) continue;
      long slot = filled < k ? filled++ : k - 1;
      for (; slot > 0 && value > best[slot - 1]; --slot) {
        best[slot] = best[slot - 1];
        at[slot] = at[slot - 1];
      }
      best[slot] = value;
      at[slot] = j;
    }
  }
}

void rq_adamw(float* p, const float* g, void* first, void* second, int bf16, long n, float grad_scale, float beta1, float beta2, float decay,
              float step_size, float root, float eps) {
  if (bf16)
    adamw_(p, g, static_cast<uint16_t*>(first), static_cast<uint16_t*>(second), n, grad_scale, beta1, beta2, decay, step_size, root, eps);
  else
    adamw_(p, g, static_cast<float*>(first), static_cast<float*>(second), n, grad_scale, beta1, beta2, decay, step_size, root, eps);
}

double rq_sum_of_squares(const float* x, long n, double* parts, long chunks) {
#pragma omp parallel for schedule(static)
  for (long c = 0; c < chunks; ++c) {
    double lane[LANES] = {0.0};
    long i = n * c / chunks;
    const long end = n * (c + 1) / chunks;
    for (; i + LANES <= end; i += LANES)
      for (int j = 0; j < LANES; ++j) lane[j] += static_cast<double>(x[i + j]) * x[i + j];
    for (; i < end; ++i) lane[0] += static_cast<double>(x[i]) * x[i];
    double s = 0.0;
    for (int j = 0; j < LANES; ++j) s += lane[j];
    parts[c] = s;
  }
  double s = 0.0;
  for (long c = 0; c < chunks; ++c) s += parts[c];
  return s;
}
}
