// Products of matrices for scoring (tree.cpp, ffn.cpp): one matrix is read as it is stored, the other holds up to ACROSS rows of a batch side by
// side, y[r] = sum over i of a[r, i] b[i], where b[i] and y[r] are vectors over rows. Every row's sum runs in the order of i, whatever stands
// beside it and however wide the machine's vectors are.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, SUMS = 8, WIDE = 3;  // numbers of a vector; rows of a, and vectors, whose sums are held in registers
#elif defined(__AVX__)
constexpr int LANES = 8, SUMS = 4, WIDE = 2;
#else
constexpr int LANES = 4, SUMS = 4, WIDE = 2;
#endif
constexpr long ACROSS = WIDE * LANES;

typedef float lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef float loose __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));
typedef int32_t whole __attribute__((vector_size(LANES * sizeof(float))));

inline lanes load(const float* p) { return *reinterpret_cast<const loose*>(p); }
inline void store(float* p, lanes x) { *reinterpret_cast<loose*>(p) = x; }
inline long up(long n, long to) { return (n + to - 1) / to * to; }
inline long least(long a, long b) { return a < b ? a : b; }

inline lanes exponential(lanes x) {
  const lanes low = lanes{} - 87.3f, high = lanes{} + 88.3f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const lanes t = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // to the nearest whole number
  const lanes y = (x - t * 0.693359375f) + t * 2.12194440e-4f;
  lanes p = y * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * y + 8.3334519073e-3f;
  p = p * y + 4.1665795894e-2f;
  p = p * y + 1.6666665459e-1f;
  p = p * y + 5.0000001201e-1f;
  p = p * y * y + y + 1.0f;
  const whole power = (__builtin_convertvector(t, whole) + 127) << 23;
  lanes two;
  std::memcpy(&two, &power, sizeof two);
  return p * two;
}

// y[R, V] (+)= sum over i < k of a(r, i) b[i, V], where a(r, i) stands at a[r * row + i * step]; b and y hold ACROSS numbers in a row
template <int R, int V, bool ADD>
inline void tile(const float* a, long row, long step, const float* b, float* y, long k) {
  lanes sum[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) sum[r][v] = ADD ? load(y + r * ACROSS + v * LANES) : lanes{};
  for (long i = 0; i < k; ++i) {
    lanes w[V];
    for (int v = 0; v < V; ++v) w[v] = load(b + i * ACROSS + v * LANES);
    const float* x = a + i * step;
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) sum[r][v] += x[r * row] * w[v];
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(y + r * ACROSS + v * LANES, sum[r][v]);
}

template <int R, bool ADD>
inline void rows_of(const float* a, long row, long step, const float* b, float* y, long vectors, long k) {
  if constexpr (WIDE > 2)
    if (vectors == 3) tile<R, 3, ADD>(a, row, step, b, y, k);
  if (vectors == 2) tile<R, 2, ADD>(a, row, step, b, y, k);
  if (vectors == 1) tile<R, 1, ADD>(a, row, step, b, y, k);
}

// `rows` rows of y, `vectors` vectors each
template <bool ADD>
inline void strip(const float* a, long row, long step, const float* b, float* y, long rows, long vectors, long k) {
  long r = 0;
  for (; r + SUMS <= rows; r += SUMS) rows_of<SUMS, ADD>(a + r * row, row, step, b, y + r * ACROSS, vectors, k);
  for (; r < rows; ++r) rows_of<1, ADD>(a + r * row, row, step, b, y + r * ACROSS, vectors, k);
}

// a square of vectors: rows become columns
inline void transpose(lanes* x) {
#if defined(__AVX512F__) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define RQ_SHUFFLED
#endif
#endif
#if defined(RQ_SHUFFLED)
  for (int stage = 0; stage < 4; ++stage) {  // each interleaves the rows of one half with those of the other
    lanes y[LANES];
    for (int i = 0; i < LANES / 2; ++i) {
      y[2 * i] = __builtin_shufflevector(x[i], x[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      y[2 * i + 1] = __builtin_shufflevector(x[i], x[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    for (int i = 0; i < LANES; ++i) x[i] = y[i];
  }
#else
  float y[LANES][LANES];
  for (int i = 0; i < LANES; ++i)
    for (int j = 0; j < LANES; ++j) y[j][i] = x[i][j];
  for (int i = 0; i < LANES; ++i) x[i] = load(y[i]);
#endif
}

// row(j), j < n <= ACROSS, of k numbers -> y [k, ACROSS], zeros beside the last row up to a whole vector; returns the vectors
template <class Row>
inline long side_by_side(Row row, long n, long k, float* y) {
  const long vectors = up(n, LANES) / LANES;
  for (long v = 0; v < vectors; ++v) {
    const long some = least(LANES, n - v * LANES);
    const float* from[LANES];
    for (long j = 0; j < LANES; ++j) from[j] = j < some ? row(v * LANES + j) : nullptr;
    long i = 0;
    for (; i + LANES <= k; i += LANES) {
      lanes x[LANES];
      for (long j = 0; j < LANES; ++j) x[j] = from[j] ? load(from[j] + i) : lanes{};
      transpose(x);
      for (long j = 0; j < LANES; ++j) store(y + (i + j) * ACROSS + v * LANES, x[j]);
    }
    for (; i < k; ++i)
      for (long j = 0; j < LANES; ++j) y[i * ACROSS + v * LANES + j] = from[j] ? from[j][i] : 0.0f;
  }
  return vectors;
}

// x [k, ACROSS] -> take(j, i, x[i .. i + LANES - 1, j]) for the n rows j, and one(j, i, x[i, j]) for what is left of k
template <class Take, class One>
inline void in_rows(const float* x, long n, long k, Take take, One one) {
  for (long v = 0; v * LANES < n; ++v) {
    const long some = least(LANES, n - v * LANES);
    long i = 0;
    for (; i + LANES <= k; i += LANES) {
      lanes y[LANES];
      for (long j = 0; j < LANES; ++j) y[j] = load(x + (i + j) * ACROSS + v * LANES);
      transpose(y);
      for (long j = 0; j < some; ++j) take(v * LANES + j, i, y[j]);
    }
    for (; i < k; ++i)
      for (long j = 0; j < some; ++j) one(v * LANES + j, i, x[i * ACROSS + v * LANES + j]);
  }
}

}  // namespace
