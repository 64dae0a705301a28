// SwiGLU feed-forward of a list of rows, down(silu(gate x) * (up x)), added to the rows' sums: of routed experts, of the shared ones, or of a
// dense block. Up to 48 rows at a time go through all three matrices in scratch; weights are read as they are stored. Without gradients.
// A row's result does not depend on the other rows nor on the number of threads: an expert's rows are added in the order of experts.
// Letters: n tokens, m model width, f FFN width, w rows, one per (token, chosen expert).

#include <cstdlib>

#include "strips.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace {

struct Weights {
  const float *gate, *up, *down;  // [f, m], [f, m], [m, f]
};

// token(j) and factor(j) of `count` <= ACROSS rows
template <class Token, class Factor>
inline void feed(const float* x, const Weights& w, Token token, Factor factor, long count, long m, long f, float* out, float* scratch) {
  float* xt = scratch;
  float* g = xt + m * ACROSS;
  float* h = g + f * ACROSS;
  for (long j = 0; j < count; ++j)  // where the rows are scattered, the processor does not guess them
    for (long i = 0; i < m; i += 16) __builtin_prefetch(out + token(j) * m + i, 1), __builtin_prefetch(x + token(j) * m + i);
  const long vectors = side_by_side([&](long j) { return x + token(j) * m; }, count, m, xt);
  strip<false>(w.gate, m, 1, xt, g, f, vectors, m);
  strip<false>(w.up, m, 1, xt, h, f, vectors, m);
  for (long i = 0; i < f; ++i)
    for (long v = 0; v < vectors; ++v) {
      float* p = g + i * ACROSS + v * WIDTH;
      const vec a = take(p);
      put(p, a / (1.0f + exp_vec(-a)) * take(h + i * ACROSS + v * WIDTH));
    }
  strip<false>(w.down, f, 1, g, xt, m, vectors, f);
  const auto to = [&](long j) { return out + token(j) * m; };
  in_rows(xt, count, m, [&](long j, long i, vec y) { put(to(j) + i, take(to(j) + i) + factor(j) * y); },
          [&](long j, long i, float y) { to(j)[i] += factor(j) * y; });
}

inline long first_from(const int64_t* source, long from, long to, long token) {
  while (from < to) {
    const long middle = (from + to) / 2;
    if (source[middle] < token)
      from = middle + 1;
    else
      to = middle;
  }
  return from;
}

}  // namespace

extern "C" {

// out [n, m] += the FFN of x [n, m]. With `offs` [experts]: expert e takes the rows offs[e - 1] .. offs[e] - 1, whose tokens `source` ascend, times
// `factors`; its matrices stand e * 2 f m and e * m f behind the given ones. Without: every token goes through the one FFN.
int rq_feed_forward(const float* x, const float* gate, const float* up_, const float* down, const int64_t* source, const float* factors,
                    const int32_t* offs, long experts, float* out, long n, long m, long f) {
  const long bytes = up(sizeof(float) * ACROSS * (m + 2 * f), 64);
  bool enough = true;
#pragma omp parallel
  {
    float* scratch = static_cast<float*>(std::aligned_alloc(64, bytes));
    if (!scratch) {
#pragma omp atomic write
      enough = false;
    }
#pragma omp barrier
#if defined(_OPENMP)
    const long team = omp_get_num_threads(), mine = omp_get_thread_num();
#else
    const long team = 1, mine = 0;
#endif
    const long first = n * mine / team, last = n * (mine + 1) / team;  // a thread's tokens: it alone adds to them
    if (enough && !offs)
      for (long at = first; at < last; at += ACROSS)
        feed(x, {gate, up_, down}, [&](long j) { return at + j; }, [](long) { return 1.0f; }, least(ACROSS, last - at), m, f, out, scratch);
    if (enough && offs)
      for (long e = 0; e < experts; ++e) {
        const Weights w{gate + e * 2 * f * m, up_ + e * 2 * f * m, down + e * m * f};
        const long from = e ? offs[e - 1] : 0, low = first_from(source, from, offs[e], first), high = first_from(source, low, offs[e], last);
        for (long at = low; at < high; at += ACROSS)
          feed(x, w, [&](long j) { return source[at + j]; }, [&](long j) { return factors[at + j]; }, least(ACROSS, high - at), m, f, out, scratch);
      }
    std::free(scratch);
  }
  return enough;
}
}
