// The three GEMMs of stacked experts over rows sorted by expert: y = x W^T, dx = dy W, dW = dy^T x. Widths are multiples of 16.
// A row's sums do not depend on the other rows of its expert, nor on threads.
// Letters: w rows, e experts, i and o widths. x [w, i], y [w, o], weight [e, o, i], offs[e] the end of expert e's rows.

#include "tiles.h"

namespace {

constexpr long CHUNK = 64;   // rows of a task
constexpr long MANY = 256;   // the same where a task turns its expert's weights first
constexpr long DEPTH = 256;  // terms of a pass over the operands, which then stay in the cache
constexpr long LINE = 16;   // numbers in a line of the cache

// R rows by n columns, n a multiple of WIDTH
template <int R, bool ADD>
inline void band(const float* a, long row, long step, const float* b, long ldb, float* c, long ldc, long n, long k) {
  if (n == WIDE * WIDTH) return tile<R, WIDE, ADD>(a, row, step, b, ldb, c, ldc, k);
  if (n == 2 * WIDTH) return tile<R, 2, ADD>(a, row, step, b, ldb, c, ldc, k);
  tile<R, 1, ADD>(a, row, step, b, ldb, c, ldc, k);
}

template <bool ADD>
inline void pass(const float* a, long row, long step, const float* b, long ldb, float* c, long ldc, long m, long n, long k) {
  for (long j = 0; j < n; j += WIDE * WIDTH) {
    const long some = least(WIDE * WIDTH, n - j);
    long r = 0;
    for (; r + SUMS <= m; r += SUMS) band<SUMS, ADD>(a + r * row, row, step, b + j, ldb, c + r * ldc + j, ldc, some, k);
    if constexpr (SUMS > 4)
      if (r + 4 <= m) band<4, ADD>(a + r * row, row, step, b + j, ldb, c + r * ldc + j, ldc, some, k), r += 4;
    if (r + 2 <= m) band<2, ADD>(a + r * row, row, step, b + j, ldb, c + r * ldc + j, ldc, some, k), r += 2;
    if (r < m) band<1, ADD>(a + r * row, row, step, b + j, ldb, c + r * ldc + j, ldc, some, k);
  }
}

// c[m, n] = sum over i < k of a(r, i) b[i, n], where a(r, i) stands at a[r * row + i * step]
void product(const float* a, long row, long step, const float* b, long ldb, float* c, long ldc, long m, long n, long k) {
  pass<false>(a, row, step, b, ldb, c, ldc, m, n, least(DEPTH, k));
  for (long i = DEPTH; i < k; i += DEPTH) pass<true>(a + i * step, row, step, b + i * ldb, ldb, c, ldc, m, n, least(DEPTH, k - i));
}

struct Part {
  long expert, first, rows;
};

// Part number `index` of the rows of all experts in chunks, none where there are fewer.
inline Part part_of(const int32_t* offs, long experts, long index, long chunk) {
  long start = 0;
  for (long e = 0; e < experts; start = offs[e++]) {
    const long chunks = (offs[e] - start + chunk - 1) / chunk;
    if (index < chunks) return {e, start + index * chunk, least(chunk, offs[e] - start - index * chunk)};
    index -= chunks;
  }
  return {0, 0, 0};
}

inline long parts(const int32_t* offs, long experts, long chunk) { return offs[experts - 1] / chunk + experts; }  // or fewer

}  // namespace

extern "C" {

int rq_grouped_fprop(const float* x, const float* weight, const int32_t* offs, float* y, long experts, long i, long o) {
  const long pitch = o + LINE;
  return with_scratch(parts(offs, experts, MANY), i * pitch, [&](long task, float* turned) {
    const Part part = part_of(offs, experts, task, MANY);
    if (!part.rows) return;
    turn_over(weight + part.expert * o * i, o, i, turned, pitch);
    product(x + part.first * i, i, 1, turned, pitch, y + part.first * o, o, part.rows, o, i);
  });
}

void rq_grouped_dgrad(const float* dy, const float* weight, const int32_t* offs, float* dx, long experts, long i, long o) {
#pragma omp parallel for schedule(dynamic)
  for (long p = 0; p < parts(offs, experts, CHUNK); ++p) {
    const Part part = part_of(offs, experts, p, CHUNK);
    if (part.rows) product(dy + part.first * o, o, 1, weight + part.expert * o * i, i, dx + part.first * i, i, part.rows, i, o);
  }
}

// every weight's gradient is written, zero for experts without rows
void rq_grouped_wgrad(const float* dy, const float* x, const int32_t* offs, float* dw, long experts, long i, long o) {
  const long tasks = (o + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(dynamic)
  for (long task = 0; task < experts * tasks; ++task) {
    const long e = task / tasks, from = task % tasks * CHUNK, start = e ? offs[e - 1] : 0, m = least(CHUNK, o - from);
    float* out = dw + (e * o + from) * i;
    if (offs[e] > start)
      product(dy + start * o + from, 1, o, x + start * i, i, out, i, m, i, offs[e] - start);
    else
      std::memset(out, 0, sizeof(float) * m * i);
  }
}
}
