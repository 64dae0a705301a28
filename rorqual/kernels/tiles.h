// Products of matrices out of tiles whose sums live in registers. Every sum runs in the order of its terms, whatever stands beside it.

#pragma once

#include <cstdlib>

#include "lanes.h"

namespace {

constexpr int WIDE = 3;  // vectors of a tile
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int SUMS = 8;  // rows of a tile: 24 sums in 32 registers
#else
constexpr int SUMS = 4;
#endif

inline long up(long n, long to) { return (n + to - 1) / to * to; }
inline long least(long a, long b) { return a < b ? a : b; }

// R rows and V vectors of c (+)= sum over i < k of a(r, i) b[i], where a(r, i) stands at a[r * row + i * step]
template <int R, int V, bool ADD>
inline void tile(const float* a, long row, long step, const float* b, long ldb, float* c, long ldc, long k) {
  vec sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = ADD ? take(c + r * ldc + v * WIDTH) : vec{};
  for (long i = 0; i < k; ++i) {
    vec w[V];
    for (int v = 0; v < V; ++v) w[v] = take(b + i * ldb + v * WIDTH);
    const float* x = a + i * step;
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] += x[r * row] * w[v];
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) put(c + r * ldc + v * WIDTH, sum[r][v]);
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define RQ_SHUFFLED
#endif
#endif

#if defined(RQ_SHUFFLED)
// The lower or upper halves of two vectors, number by number in turn.
inline vec in_turn(vec a, vec b, bool upper) {
#if defined(__AVX512F__)
  if (upper) return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX__)
  if (upper) return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  if (upper) return __builtin_shufflevector(a, b, 2, 6, 3, 7);
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}
#endif

// A square of vectors: rows become columns.
inline void transpose(vec* x) {
  vec y[WIDTH];
#if defined(RQ_SHUFFLED)
  for (int span = 1; span < WIDTH; span *= 2) {  // each time the rows of one half take turns with those of the other
    for (int i = 0; i < WIDTH / 2; ++i) y[2 * i] = in_turn(x[i], x[i + WIDTH / 2], false), y[2 * i + 1] = in_turn(x[i], x[i + WIDTH / 2], true);
    for (int i = 0; i < WIDTH; ++i) x[i] = y[i];
  }
#else
  for (int i = 0; i < WIDTH; ++i)
    for (int j = 0; j < WIDTH; ++j) y[j][i] = x[i][j];
  for (int i = 0; i < WIDTH; ++i) x[i] = y[i];
#endif
}

// x [t, w] -> y [w, tp], zeros behind t
inline void turn_over(const float* x, long t, long w, float* y, long tp) {
  long j = 0;
  for (; j + WIDTH <= t; j += WIDTH) {
    long i = 0;
    for (; i + WIDTH <= w; i += WIDTH) {
      vec square[WIDTH];
      for (int r = 0; r < WIDTH; ++r) square[r] = take(x + (j + r) * w + i);
      transpose(square);
      for (int r = 0; r < WIDTH; ++r) put(y + (i + r) * tp + j, square[r]);
    }
    for (; i < w; ++i)
      for (int r = 0; r < WIDTH; ++r) y[i * tp + j + r] = x[(j + r) * w + i];
  }
  for (; j < t; ++j)
    for (long i = 0; i < w; ++i) y[i * tp + j] = x[j * w + i];
  for (long i = 0; i < w; ++i) std::memset(y + i * tp + t, 0, sizeof(float) * (tp - t));
}

// Calls `one(task, scratch)` for every task, shared out among the threads, with `floats` of scratch each; false without memory for them.
template <class One>
bool with_scratch(long tasks, long floats, One one) {
  bool enough = true;
#pragma omp parallel
  {
    float* scratch = static_cast<float*>(std::aligned_alloc(64, up(sizeof(float) * floats, 64)));
    if (!scratch) {
#pragma omp atomic write
      enough = false;
    }
#pragma omp barrier
    if (enough) {
#pragma omp for schedule(dynamic)
      for (long task = 0; task < tasks; ++task) one(task, scratch);
    }
    std::free(scratch);
  }
  return enough;
}

}  // namespace
