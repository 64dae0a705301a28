// Drawing tokens from logits (inference/sampler.py): Gumbel noise that is a function of (key, id) alone, FP64 as in the reference.
// A row's result depends on nothing but the row. Letters: b rows, v vocabulary.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int LANES = 16;  // partial sums of a reduction, whatever the vector width of the machine
constexpr uint64_t STEP = 0x9E3779B97F4A7C15ull, MIX_1 = 0xBF58476D1CE4E5B9ull, MIX_2 = 0x94D049BB133111EBull;

// e^x for x <= 0 or a little above, to about one unit in the last place; never traps, so that loops over it vectorise.
inline double exp_(double x) {
  x = x < -700.0 ? -700.0 : x;
  const double shifted = x * 1.4426950408889634 + 6755399441055744.0;  // 1.5 * 2^52: the sum's low bits are the rounded value
  const double t = shifted - 6755399441055744.0;
  const double y = (x - t * 6.93147180369123816490e-01) - t * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * y + 1.0 / 479001600.0;
  p = p * y + 1.0 / 39916800.0;
  p = p * y + 1.0 / 3628800.0;
  p = p * y + 1.0 / 362880.0;
  p = p * y + 1.0 / 40320.0;
  p = p * y + 1.0 / 5040.0;
  p = p * y + 1.0 / 720.0;
  p = p * y + 1.0 / 120.0;
  p = p * y + 1.0 / 24.0;
  p = p * y + 1.0 / 6.0;
  p = p * y + 0.5;
  p = p * y * y + y + 1.0;
  int64_t n, bits;
  std::memcpy(&n, &shifted, 8);
  std::memcpy(&bits, &p, 8);
  bits += n << 52;
  std::memcpy(&p, &bits, 8);
  return p;
}

// SplitMix64's finaliser of counter i + 1: the 53 leading bits.
inline uint64_t bits_of(uint64_t key, uint64_t i) {
  uint64_t x = key + (i + 1) * STEP;
  x = (x ^ (x >> 30)) * MIX_1;
  x = (x ^ (x >> 27)) * MIX_2;
  return (x ^ (x >> 31)) >> 11;
}

inline double gumbel(uint64_t bits) { return -std::log(-std::log((static_cast<double>(bits) + 0.5) * 0x1p-53)); }

#if defined(__AVX512F__)
#define BYTES 64
#else
#define BYTES 16
#endif
typedef float vector __attribute__((vector_size(BYTES), aligned(4)));  // no wider than the machine's, or comparisons go one by one
typedef int32_t marks __attribute__((vector_size(BYTES)));

// The first place of the largest value, -1 where there is a NaN. Two passes: the largest of places side by side, then where it lies.
long argmax(const float* x, long v) {
  constexpr int SIDE = 4, WIDTH = BYTES / 4, BLOCK = 64;
  vector most[SIDE];
  marks found[SIDE] = {};
  for (auto& lanes : most) lanes = vector{} - INFINITY;
  long i = 0;
  for (; i + SIDE * WIDTH <= v; i += SIDE * WIDTH)
    for (int j = 0; j < SIDE; ++j) {
      vector here;
      std::memcpy(&here, x + i + j * WIDTH, sizeof here);
      most[j] = here > most[j] ? here : most[j];
      found[j] |= here != here;
    }
  float largest = -INFINITY;
  int nan = 0;
  for (int j = 0; j < SIDE; ++j)
    for (int k = 0; k < WIDTH; ++k) largest = most[j][k] > largest ? most[j][k] : largest, nan |= found[j][k];
  for (; i < v; ++i) largest = x[i] > largest ? x[i] : largest, nan |= x[i] != x[i];
  if (nan) return -1;
  for (i = 0; i + BLOCK <= v; i += BLOCK) {
    int here = 0;
    for (int j = 0; j < BLOCK; ++j) here |= x[i + j] == largest;
    if (here) break;
  }
  while (i < v && x[i] != largest) ++i;
  return i < v ? i : 0;
}

// argmax of x / temperature + noise. An id can only win where 1 - u < e^(its score - the best sum so far), because
// -log(-log u) > d needs u > e^(-e^-d) >= 1 - e^-d: all others skip the logarithms.
long draw(const float* x, long v, uint64_t key, double temperature) {
  long token = argmax(x, v);
  if (token < 0 || !(temperature > 0)) return token;
  double best = static_cast<double>(x[token]) / temperature + gumbel(bits_of(key, token));
  constexpr long BLOCK = 64;
  for (long first = 0; first < v; first += BLOCK) {
    const long end = first + BLOCK < v ? first + BLOCK : v;
    unsigned char may[BLOCK];
    int any = 0;
    for (long i = first; i < end; ++i) {
      const double rest = 1.0 - (static_cast<double>(static_cast<int64_t>(bits_of(key, i))) + 0.5) * 0x1p-53;
      double d = static_cast<double>(x[i]) / temperature - best;
      d = d > 1.0 ? 1.0 : d;
      may[i - first] = rest < 1.0000001 * exp_(d);
      any |= may[i - first];
    }
    if (!any) continue;
    for (long i = first; i < end; ++i) {
      if (!may[i - first]) continue;
      const double sum = static_cast<double>(x[i]) / temperature + gumbel(bits_of(key, i));
      if (sum > best || (sum == best && i < token)) best = sum, token = i;
    }
  }
  return token;
}

}  // namespace

extern "C" {

// One token of the first `width` logits; temperature 0 takes the largest. -1 for a row that holds NaN.
long rq_draw_row(const float* logits, long width, int64_t key, double temperature) {
  return draw(logits, width, static_cast<uint64_t>(key), temperature);
}

// The same for every row of logits [b, stride], of the first v ids.
void rq_draw(const float* logits, long b, long stride, long v, const int64_t* keys, const double* temperature, int64_t* tokens) {
#pragma omp parallel for schedule(static) if (b > 1)
  for (long r = 0; r < b; ++r) {
    tokens[r] = draw(logits + r * stride, v, static_cast<uint64_t>(keys[r]), temperature[r]);
  }
}

// log softmax at one id of each row, and that id's place from 1 among all, equal ones in order of their ids.
void rq_token_logprobs(const float* logits, long b, long stride, long v, const int64_t* tokens, double* logprobs, int64_t* ranks) {
#pragma omp parallel for schedule(static) if (b > 1)
  for (long r = 0; r < b; ++r) {
    const float* x = logits + r * stride;
    const long best = argmax(x, v);
    const double top = best < 0 ? NAN : x[best];
    double lane[LANES] = {0.0};
    long i = 0;
    for (; i + LANES <= v; i += LANES)
      for (int j = 0; j < LANES; ++j) lane[j] += exp_(static_cast<double>(x[i + j]) - top);
    for (; i < v; ++i) lane[i % LANES] += exp_(static_cast<double>(x[i]) - top);
    double sum = 0.0;
    for (int j = 0; j < LANES; ++j) sum += lane[j];
    const float own = x[tokens[r]];
    long above = 0;
    for (i = 0; i < v; ++i) above += (x[i] > own) | ((x[i] == own) & (i < tokens[r]));
    logprobs[r] = static_cast<double>(own) - top - std::log(sum);
    ranks[r] = 1 + above;
  }
}
}
