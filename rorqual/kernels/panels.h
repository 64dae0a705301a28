// Matrices as decode.cpp reads them: rows as they lie in the model, or panels of 16 outputs, in FP32, BF16, FP16 or INT8 with one
// scale per output. A panel holds, for each input, the weights of its 16 outputs side by side, so that a sum lives in one lane and needs no
// adding up across lanes: at 16 rows 2.5 times as fast as rows. Sums run over the inputs in their order, whatever the tile.
// Included by decode.cpp alone, after `lanes`, `load` and `some_outputs`.

#pragma once

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

constexpr long PANEL = 16;   // outputs of a panel
constexpr long STRIPE = 32;  // outputs that a thread takes at a time

// `kind`: 0 rows in FP32; panels in 1 FP32, 2 BF16, 3 FP16, 4 INT8. `scale` of each output for kind 4.
struct Matrix {
    const void* data;
    const float* scale;
    long kind;
};

typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));
typedef int32_t whole __attribute__((vector_size(64)));
typedef int8_t bytes __attribute__((vector_size(16)));

struct BF16 {
    uint16_t bits;
};
struct FP16 {
    uint16_t bits;
};

inline lanes as_lanes(words w) {
    lanes x;
    std::memcpy(&x, &w, sizeof x);
    return x;
}

inline lanes widen(const float* p) { return load(p); }

inline lanes widen(const BF16* p) {
    halves h;
    std::memcpy(&h, p, sizeof h);
    return as_lanes(__builtin_convertvector(h, words) << 16);
}

inline lanes widen(const FP16* p) {
#if defined(__AVX512F__)
    return (lanes)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
    __m256 low = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    __m256 high = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)));
    lanes x;
    std::memcpy(&x, &low, sizeof low);
    std::memcpy(reinterpret_cast<char*>(&x) + sizeof low, &high, sizeof high);
    return x;
#else
    halves h;  // finite numbers: exponent and fraction moved into place, the exponent's offset made up for by a power of two
    std::memcpy(&h, p, sizeof h);
    words w = __builtin_convertvector(h, words);
    lanes size = as_lanes((w & 0x7fffu) << 13) * 0x1p112f;
    words bits;
    std::memcpy(&bits, &size, sizeof bits);
    return as_lanes(bits | (w & 0x8000u) << 16);
#endif
}

inline lanes widen(const int8_t* p) {
#if defined(__AVX512F__)
    return (lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
    __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b)), high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8)));
    lanes x;
    std::memcpy(&x, &low, sizeof low);
    std::memcpy(reinterpret_cast<char*>(&x) + sizeof low, &high, sizeof high);
    return x;
#else
    bytes b;
    std::memcpy(&b, p, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, whole), lanes);
#endif
}

// R rows by V neighbouring panels, from output `out` of `o`; `w` is at the first of the panels
template <int R, int V, typename T>
inline void panel_tile(const float* const* x, const T* w, const float* scale, long k, float* const* y, long out, long o) {
    lanes sum[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sum[r][v] = lanes{};
    for (long i = 0; i < k; i++) {
        lanes weight[V];
        for (int v = 0; v < V; v++) weight[v] = widen(w + (v * k + i) * PANEL);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) sum[r][v] += x[r][i] * weight[v];
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) {
            const long first = out + v * PANEL;
            if (scale) sum[r][v] *= load(scale + first);
            std::memcpy(y[r] + first, &sum[r][v], (o - first < PANEL ? o - first : PANEL) * sizeof(float));
        }
}

template <int R, int V, typename T>
inline void panel_rows(const float* const* x, const T* w, const float* scale, long k, float* const* y, long first, long last, long o) {
    long out = first;
    for (; out + (V - 1) * PANEL < last; out += V * PANEL) panel_tile<R, V>(x, w + out * k, scale, k, y, out, o);
    if constexpr (V > 1)
        for (; out < last; out += PANEL) panel_tile<R, 1>(x, w + out * k, scale, k, y, out, o);
}

template <typename T>
inline void panel_outputs(const float* const* x, long n, const void* data, const float* scale, long k, float* const* y, long first, long last, long o) {
    const T* w = static_cast<const T*>(data);
    long row = 0;
    for (; row + 4 <= n; row += 4) panel_rows<4, 1>(x + row, w, scale, k, y + row, first, last, o);
    if (n - row == 3) panel_rows<3, 1>(x + row, w, scale, k, y + row, first, last, o);
    if (n - row == 2) panel_rows<2, 2>(x + row, w, scale, k, y + row, first, last, o);
    if (n - row == 1) panel_rows<1, 4>(x + row, w, scale, k, y + row, first, last, o);
}

// Outputs `first` (a multiple of PANEL) up to `last` of the `o` that w has.
inline void outputs_of(const float* const* x, long n, const Matrix& w, long k, float* const* y, long first, long last, long o) {
    switch (w.kind) {
        case 0: return some_outputs(x, n, static_cast<const float*>(w.data), k, y, first, last);
        case 1: return panel_outputs<float>(x, n, w.data, nullptr, k, y, first, last, o);
        case 2: return panel_outputs<BF16>(x, n, w.data, nullptr, k, y, first, last, o);
        case 3: return panel_outputs<FP16>(x, n, w.data, nullptr, k, y, first, last, o);
        default: return panel_outputs<int8_t>(x, n, w.data, w.scale, k, y, first, last, o);
    }
}

// Matrix number `index` of a stack of matrices of `o` outputs and `k` inputs.
inline Matrix part(const Matrix& w, long index, long o, long k) {
    const long padded = (o + PANEL - 1) / PANEL * PANEL, sizes[] = {4, 4, 2, 2, 1};
    const long at = index * (w.kind ? padded : o);
    return {static_cast<const char*>(w.data) + at * k * sizes[w.kind], w.scale ? w.scale + at : nullptr, w.kind};
}

// y = x W^T; to be called by all threads of a region
void linear(const float* x, long ldx, const Matrix& w, float* y, long ldy, long n, long k, long o) {
    const float* in[64];
    float* out[64];
#pragma omp for schedule(static)
    for (long first = 0; first < o; first += STRIPE)
        for (long row = 0; row < n; row += 64) {
            long rows = n - row < 64 ? n - row : 64;
            for (long i = 0; i < rows; i++) in[i] = x + (row + i) * ldx, out[i] = y + (row + i) * ldy;
            outputs_of(in, rows, w, k, out, first, first + STRIPE < o ? first + STRIPE : o, o);
        }
}

// y[row][head] = W_head x[row][head], a matrix of `o` outputs for each of `h` heads; x and y of a head lie `step` and `gap` apart, rows of x `ldx`
void per_head(const float* x, long step, long ldx, const Matrix& w, float* y, long gap, long n, long h, long k, long o) {
    const float* in[64];
    float* out[64];
#pragma omp for schedule(static)
    for (long head = 0; head < h; head++)
        for (long row = 0; row < n; row += 64) {
            long rows = n - row < 64 ? n - row : 64;
            for (long i = 0; i < rows; i++) in[i] = x + (row + i) * ldx + head * step, out[i] = y + ((row + i) * h + head) * gap;
            outputs_of(in, rows, part(w, head, o, k), k, out, 0, o, o);
        }
}

}  // namespace
