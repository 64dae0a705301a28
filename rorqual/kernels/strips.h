// Products of matrices for scoring (tree.cpp, ffn.cpp): one matrix is read as it is stored, the other holds up to ACROSS rows of a batch side by
// side, y[r] = sum over i of a[r, i] b[i], where b[i] and y[r] are vectors over rows. Every row's sum runs in the order of i, whatever stands
// beside it and however wide the machine's vectors are.

#pragma once

#include "tiles.h"

namespace {

constexpr long ACROSS = WIDE * WIDTH;  // numbers of a tile's row

template <int R, bool ADD>
inline void rows_of(const float* a, long row, long step, const float* b, float* y, long vectors, long k) {
  if (vectors == 3) tile<R, 3, ADD>(a, row, step, b, ACROSS, y, ACROSS, k);
  if (vectors == 2) tile<R, 2, ADD>(a, row, step, b, ACROSS, y, ACROSS, k);
  if (vectors == 1) tile<R, 1, ADD>(a, row, step, b, ACROSS, y, ACROSS, k);
}

// `rows` rows of y, `vectors` vectors each
template <bool ADD>
inline void strip(const float* a, long row, long step, const float* b, float* y, long rows, long vectors, long k) {
  long r = 0;
  for (; r + SUMS <= rows; r += SUMS) rows_of<SUMS, ADD>(a + r * row, row, step, b, y + r * ACROSS, vectors, k);
  for (; r < rows; ++r) rows_of<1, ADD>(a + r * row, row, step, b, y + r * ACROSS, vectors, k);
}

// row(j), j < n <= ACROSS, of k numbers -> y [k, ACROSS], zeros beside the last row up to a whole vector; returns the vectors
template <class Row>
inline long side_by_side(Row row, long n, long k, float* y) {
  const long vectors = up(n, WIDTH) / WIDTH;
  for (long v = 0; v < vectors; ++v) {
    const long some = least(WIDTH, n - v * WIDTH);
    const float* from[WIDTH];
    for (long j = 0; j < WIDTH; ++j) from[j] = j < some ? row(v * WIDTH + j) : nullptr;
    long i = 0;
    for (; i + WIDTH <= k; i += WIDTH) {
      vec x[WIDTH];
      for (long j = 0; j < WIDTH; ++j) x[j] = from[j] ? take(from[j] + i) : vec{};
      transpose(x);
      for (long j = 0; j < WIDTH; ++j) put(y + (i + j) * ACROSS + v * WIDTH, x[j]);
    }
    for (; i < k; ++i)
      for (long j = 0; j < WIDTH; ++j) y[i * ACROSS + v * WIDTH + j] = from[j] ? from[j][i] : 0.0f;
  }
  return vectors;
}

// x [k, ACROSS] -> give(j, i, x[i .. i + WIDTH - 1, j]) for the n rows j, and one(j, i, x[i, j]) for what is left of k
template <class Give, class One>
inline void in_rows(const float* x, long n, long k, Give give, One one) {
  for (long v = 0; v * WIDTH < n; ++v) {
    const long some = least(WIDTH, n - v * WIDTH);
    long i = 0;
    for (; i + WIDTH <= k; i += WIDTH) {
      vec y[WIDTH];
      for (long j = 0; j < WIDTH; ++j) y[j] = take(x + (i + j) * ACROSS + v * WIDTH);
      transpose(y);
      for (long j = 0; j < some; ++j) give(v * WIDTH + j, i, y[j]);
    }
    for (; i < k; ++i)
      for (long j = 0; j < some; ++j) one(v * WIDTH + j, i, x[i * ACROSS + v * WIDTH + j]);
  }
}

}  // namespace
