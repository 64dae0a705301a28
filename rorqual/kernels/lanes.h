// What the FP32 kernels share: the machine's vectors, 16 numbers whatever their width, sums in 16 partial sums, the exponential.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int LANES = 16;  // partial sums of a reduction, whatever the vector width of the machine

#if defined(__AVX512F__)
constexpr int WIDTH = 16;  // of the machine's vectors: wider ones would live in memory
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
typedef float vec __attribute__((vector_size(WIDTH * sizeof(float))));
typedef float loose __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4), may_alias));  // anywhere in memory: one move, where memcpy may take two

inline vec take(const float* p) { return *reinterpret_cast<const loose*>(p); }
inline void put(float* p, vec x) { *reinterpret_cast<loose*>(p) = x; }

inline float exp_(float x) {
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.3f ? 88.3f : x;
  const float t = std::floor(x * 1.44269504088896341f + 0.5f);
  const float y = (x - t * 0.693359375f) + t * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * y + 1.3981999507e-3f;
  p = p * y + 8.3334519073e-3f;
  p = p * y + 4.1665795894e-2f;
  p = p * y + 1.6666665459e-1f;
  p = p * y + 5.0000001201e-1f;
  p = p * y * y + y + 1.0f;
  union { int32_t i; float f; } power;
  power.i = (static_cast<int32_t>(t) + 127) << 23;
  return p * power.f;
}

// The same of a vector, rounded to the nearest power of two by other means: the last bit may differ.
inline vec exp_vec(vec x) {
  const vec low = vec{} - 87.0f, high = vec{} + 88.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the rounded value
  const vec t = shifted - 12582912.0f;
  const vec y = (x - t * 0.693359375f) + t * 2.12194440e-4f;
  vec p = vec{} + 1.9875691500e-4f;
  p = p * y + 1.3981999507e-3f;
  p = p * y + 8.3334519073e-3f;
  p = p * y + 4.1665795894e-2f;
  p = p * y + 1.6666665459e-1f;
  p = p * y + 5.0000001201e-1f;
  p = p * y * y + y + 1.0f;
  typedef int32_t numbers __attribute__((vector_size(WIDTH * sizeof(int32_t))));
  numbers n, bits;
  std::memcpy(&n, &shifted, sizeof n);
  std::memcpy(&bits, &p, sizeof bits);
  bits += n << 23;
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

inline float total(const float* lane) {
  float s = 0.0f;
  for (int j = 0; j < LANES; ++j) s += lane[j];
  return s;
}

template <class F>
inline float sum_over(long m, F value) {
  float lane[LANES] = {0.0f};
  long i = 0;
  for (; i + LANES <= m; i += LANES)
    for (int j = 0; j < LANES; ++j) lane[j] += value(i + j);
  for (; i < m; ++i) lane[i % LANES] += value(i);
  return total(lane);
}

inline float total(vec x) {
  float s = x[0];
  for (int j = 1; j < WIDTH; ++j) s += x[j];
  return s;
}

inline float max_of(const float* x, long m) {
  float lane[LANES];
  for (int j = 0; j < LANES; ++j) lane[j] = x[0];
  long i = 0;
  for (; i + LANES <= m; i += LANES)
    for (int j = 0; j < LANES; ++j) lane[j] = x[i + j] > lane[j] ? x[i + j] : lane[j];
  for (; i < m; ++i) lane[0] = x[i] > lane[0] ? x[i] : lane[0];
  float top = lane[0];
  for (int j = 1; j < LANES; ++j) top = lane[j] > top ? lane[j] : top;
  return top;
}

#if defined(__AVX512F__)
typedef vec lanes;
#else
// Sixteen numbers as a few of the machine's vectors: one vector of 16 would live in memory.
struct lanes {
  static constexpr int PARTS = LANES / WIDTH;
  vec part[PARTS];
  float operator[](int j) const { return part[j / WIDTH][j % WIDTH]; }
};

template <class F>
inline lanes each(F value) {
  lanes x;
  for (int i = 0; i < lanes::PARTS; ++i) x.part[i] = value(i);
  return x;
}

inline lanes operator+(lanes a, lanes b) { return each([&](int i) { return a.part[i] + b.part[i]; }); }
inline lanes operator+(lanes a, float b) { return each([&](int i) { return a.part[i] + b; }); }
inline lanes operator+(float a, lanes b) { return b + a; }
inline lanes operator-(lanes a, lanes b) { return each([&](int i) { return a.part[i] - b.part[i]; }); }
inline lanes operator-(lanes a, float b) { return each([&](int i) { return a.part[i] - b; }); }
inline lanes operator-(lanes a) { return each([&](int i) { return -a.part[i]; }); }
inline lanes operator*(lanes a, lanes b) { return each([&](int i) { return a.part[i] * b.part[i]; }); }
inline lanes operator*(lanes a, float b) { return each([&](int i) { return a.part[i] * b; }); }
inline lanes operator*(float a, lanes b) { return b * a; }
inline lanes operator/(lanes a, lanes b) { return each([&](int i) { return a.part[i] / b.part[i]; }); }
inline lanes operator/(float a, lanes b) { return each([&](int i) { return a / b.part[i]; }); }
inline lanes& operator+=(lanes& a, lanes b) { return a = a + b; }
inline lanes& operator*=(lanes& a, lanes b) { return a = a * b; }
#endif

inline lanes load(const float* p) {
#if defined(__AVX512F__)
  return take(p);
#else
  return each([&](int i) { return take(p + i * WIDTH); });
#endif
}

inline lanes larger(lanes a, lanes b) {
#if defined(__AVX512F__)
  return a > b ? a : b;
#else
  return each([&](int i) { return a.part[i] > b.part[i] ? a.part[i] : b.part[i]; });
#endif
}

// e^x to about a unit in the last place, for x from -87 to 88; less counts as -87, more as 88
inline lanes exp_lanes(lanes x) {
#if defined(__AVX512F__)
  return exp_vec(x);
#else
  return each([&](int i) { return exp_vec(x.part[i]); });
#endif
}

}  // namespace
