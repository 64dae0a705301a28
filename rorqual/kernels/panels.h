// Matrices as decode.cpp reads them: panels of 16 outputs, in FP32, BF16, FP16 or INT8 with one scale per output. A panel holds, for each
// input, the weights of its 16 outputs side by side, so that a sum lives in one lane and needs no adding up across lanes. Two neighbouring
// panels are interleaved, input by input, so that one row reads a single stream; an odd last panel stands alone.
// Sums run over the inputs in their order, whatever the tile. Included by decode.cpp alone, after `lanes` and `load`.
// A fifth kind, for drafts, multiplies INT8 by INT8: each row's inputs are rounded to 8 bits by their largest magnitude, and four
// neighbouring inputs of an output lie side by side. Whole numbers: no order at all.

#pragma once

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

constexpr long PANEL = 16;  // outputs of a panel
constexpr long UNIT = 32;   // outputs of two panels, the least that a thread takes
constexpr long CHUNK = 64;  // outputs whose weights stay close while all rows pass
constexpr long TILE = 8;    // rows of a tile
constexpr long ROUNDED = 5;  // number of the kind whose inputs are rounded
constexpr long MOST_ROUNDED = 32768;  // inputs of such a matrix

// `kind`: panels in 1 FP32, 2 BF16, 3 FP16, 4 INT8, 5 INT8 for rounded inputs. `scale` of each output for kinds 4 and 5; `shift` for kind 5:
// 128 times the sum of an output's weights.
struct Matrix {
    const void* data;
    const float* scale;
    const int32_t* shift;
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

inline vec widen_part(const BF16* p) {
    typedef uint16_t some_halves __attribute__((vector_size(WIDTH * 2)));
    typedef uint32_t some_words __attribute__((vector_size(WIDTH * 4)));
    some_halves h;
    std::memcpy(&h, p, sizeof h);
    const some_words w = __builtin_convertvector(h, some_words) << 16;
    vec x;
    std::memcpy(&x, &w, sizeof x);
    return x;
}

inline lanes widen(const BF16* p) {
#if defined(__AVX512F__)
    return widen_part(p);
#else
    return each([&](int i) { return widen_part(p + i * WIDTH); });
#endif
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
    typedef float sixteen __attribute__((vector_size(64)));
    const sixteen wide = __builtin_convertvector(__builtin_convertvector(b, whole), sixteen);
    lanes x;
    std::memcpy(&x, &wide, sizeof x);
    return x;
#endif
}

// R rows by V panels from output `out` of `o`; `w` is at the first of them, groups of S panels are interleaved
template <int R, int V, int S, typename T>
inline void panel_tile(const float* const* rows, const T* w, const float* scale, long k, float* const* y, long out, long o) {
    const float* x[R];
    lanes sum[R][V];
    for (int r = 0; r < R; r++) {
        x[r] = rows[r];
        for (int v = 0; v < V; v++) sum[r][v] = lanes{};
    }
    for (long i = 0; i < k; i++) {
        lanes weight[V];
        for (int v = 0; v < V; v++) weight[v] = widen(w + ((v / S * k + i) * S + v % S) * PANEL);
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) sum[r][v] += x[r][i] * weight[v];
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) {
            const long first = out + v * PANEL;
            if (scale) sum[r][v] *= load(scale + first);
            store_some(y[r] + first, sum[r][v], o - first);
        }
}

#if defined(__AVX512F__)
constexpr bool MANY_REGISTERS = true;
#else
constexpr bool MANY_REGISTERS = false;  // 16 of half the width: at most 8 sums of a tile fit
#endif

// R rows by the panels from `first` to `last`; pairs of panels lie below `paired`
template <int R, typename T>
inline void panel_rows(const float* const* x, const T* w, const float* scale, long k, float* const* y, long first, long last, long paired, long o) {
    long out = first;
    const long end = last < paired ? last : paired;
    if constexpr (sizeof(T) == 4 && (MANY_REGISTERS ? R <= 4 : R == 1))
        for (; out + UNIT < end; out += 2 * UNIT) panel_tile<R, 4, 2>(x, w + out * k, scale, k, y, out, o);
    if constexpr (MANY_REGISTERS || R <= 2)
        for (; out < end; out += UNIT) panel_tile<R, 2, 2>(x, w + out * k, scale, k, y, out, o);
    else
        for (; out < end; out += UNIT) {
            panel_tile<R, 1, 2>(x, w + out * k, scale, k, y, out, o);
            panel_tile<R, 1, 2>(x, w + out * k + PANEL, scale, k, y, out + PANEL, o);
        }
    if (out < last) panel_tile<R, 1, 1>(x, w + out * k, scale, k, y, out, o);
}

template <typename T>
__attribute__((noinline)) void panel_outputs(const float* const* x, long n, const Matrix& m, long k, float* const* y, long first, long last, long o) {
    const T* w = static_cast<const T*>(m.data);
    const float* scale = m.scale;
    const long paired = (o + PANEL - 1) / UNIT * UNIT;
    long row = 0;
    if constexpr (MANY_REGISTERS && sizeof(T) == 4) {
        for (; row + 8 <= n; row += 8) panel_rows<8>(x + row, w, scale, k, y + row, first, last, paired, o);
        if (n - row == 7) return panel_rows<7>(x + row, w, scale, k, y + row, first, last, paired, o);
        if (n - row == 6) return panel_rows<6>(x + row, w, scale, k, y + row, first, last, paired, o);
        if (n - row == 5) return panel_rows<5>(x + row, w, scale, k, y + row, first, last, paired, o);
    }
    for (; row + 4 <= n; row += 4) panel_rows<4>(x + row, w, scale, k, y + row, first, last, paired, o);
    if constexpr (sizeof(T) == 4)
        if (n - row == 3) return panel_rows<3>(x + row, w, scale, k, y + row, first, last, paired, o);
    if (n - row >= 2) panel_rows<2>(x + row, w, scale, k, y + row, first, last, paired, o), row += 2;
    if (n > row) panel_rows<1>(x + row, w, scale, k, y + row, first, last, paired, o);
}

inline long units(long outputs) { return (outputs + UNIT - 1) / UNIT; }

// Matrix number `index` of a stack of matrices of `o` outputs and `k` inputs.
inline Matrix part(const Matrix& w, long index, long o, long k) {
    const long sizes[] = {4, 4, 2, 2, 1, 1}, at = index * ((o + PANEL - 1) / PANEL * PANEL), inputs = w.kind == ROUNDED ? (k + 3) / 4 * 4 : k;
    return {static_cast<const char*>(w.data) + at * inputs * sizes[w.kind], w.scale ? w.scale + at : nullptr, w.shift ? w.shift + at : nullptr, w.kind};
}

#if defined(__AVX512VNNI__) && defined(__AVX512F__)
// One row by V neighbouring panels of `groups` groups of four inputs, two groups at a time. The inputs are 128 too large, to have no sign;
// `shift` is what that adds.
template <int V>
inline void rounded_tile(const uint8_t* x, float scale, const int8_t* w, const float* scales, const int32_t* shift, long groups, float* y, long out, long o) {
    __m512i sum[2][V];
    for (int v = 0; v < V; v++) sum[0][v] = sum[1][v] = _mm512_setzero_si512();
    for (long g = 0; g < groups; g += 2)
        for (int next = 0; next < 2 && g + next < groups; next++) {
            int32_t four;
            std::memcpy(&four, x + 4 * (g + next), sizeof four);
            const __m512i value = _mm512_set1_epi32(four);
            for (int v = 0; v < V; v++)
                sum[next][v] = _mm512_dpbusd_epi32(sum[next][v], value, _mm512_loadu_si512(w + ((g + next) * V + v) * 64));
        }
    for (int v = 0; v < V; v++) {
        const long first = out + v * PANEL;
        const __m512i total = _mm512_sub_epi32(_mm512_add_epi32(sum[0][v], sum[1][v]), _mm512_loadu_si512(shift + first));
        const lanes result = (lanes)_mm512_cvtepi32_ps(total) * scale * load(scales + first);
        store_some(y + first, result, o - first);
    }
}

// x / scale + 128 as bytes, filled up with 128 to a multiple of four; returns the scale
inline float round_row(const float* x, long k, uint8_t* bytes) {
    lanes most = lanes{};
    float largest = 0.0f;
    long i = 0;
    for (; i + LANES <= k; i += LANES) {
        const lanes value = load(x + i), size = value < 0 ? -value : value;
        most = size > most ? size : most;
    }
    for (; i < k; i++) largest = std::fabs(x[i]) > largest ? std::fabs(x[i]) : largest;
    for (int j = 0; j < LANES; j++) largest = most[j] > largest ? most[j] : largest;
    const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
    for (i = 0; i + LANES <= k; i += LANES) {
        const __m512i whole = _mm512_cvtps_epi32((__m512)(load(x + i) * inverse + 128.0f));
        const __m128i narrow = _mm512_cvtepi32_epi8(whole);
        std::memcpy(bytes + i, &narrow, sizeof narrow);
    }
    for (; i < k; i++) bytes[i] = static_cast<uint8_t>(x[i] * inverse + 128.5f);
    for (; i % 4; i++) bytes[i] = 128;
    return largest / 127.0f;
}

// one row's outputs from `first` to `last`
__attribute__((noinline)) void rounded_outputs(const float* x, const Matrix& w, long k, float* y, long first, long last, long o) {
    const long groups = (k + 3) / 4, paired = (o + PANEL - 1) / UNIT * UNIT, end = last < paired ? last : paired;
    const int8_t* data = static_cast<const int8_t*>(w.data);
    uint8_t bytes[MOST_ROUNDED];
    const float scale = round_row(x, k, bytes);
    long at = first;
    for (; at < end; at += UNIT) rounded_tile<2>(bytes, scale, data + at * groups * 4, w.scale, w.shift, groups, y, at, o);
    if (at < last) rounded_tile<1>(bytes, scale, data + at * groups * 4, w.scale, w.shift, groups, y, at, o);
}
constexpr bool CAN_ROUND = true;
#else
inline void rounded_outputs(const float*, const Matrix&, long, float*, long, long, long) {}
constexpr bool CAN_ROUND = false;
#endif

// n rows of at most TILE: outputs from `first` to `last`
__attribute__((noinline)) void outputs_of(const float* const* x, long n, const Matrix& w, long k, float* const* y, long first, long last, long o) {
    switch (w.kind) {
        case 1: return panel_outputs<float>(x, n, w, k, y, first, last, o);
        case 2: return panel_outputs<BF16>(x, n, w, k, y, first, last, o);
        case 3: return panel_outputs<FP16>(x, n, w, k, y, first, last, o);
        default: return panel_outputs<int8_t>(x, n, w, k, y, first, last, o);
    }
}

// out(i) = W in(i) for n rows: units `from` up to `to` of the `o` outputs, `k` inputs
template <typename In, typename Out>
inline void multiply(const Matrix& w, long k, long o, long n, In in, Out out, long from, long to) {
    const float* x[TILE];
    float* y[TILE];
    const long end = to * UNIT < o ? to * UNIT : o;
    if (w.kind == ROUNDED) {
        if (from < to)
            for (long i = 0; i < n; i++) rounded_outputs(in(i), w, k, out(i), from * UNIT, end, o);
        return;
    }
    for (long first = from * UNIT; first < end; first += CHUNK) {
        const long last = first + CHUNK < end ? first + CHUNK : end;
        for (long row = 0; row < n; row += TILE) {
            const long rows = n - row < TILE ? n - row : TILE;
            for (long i = 0; i < rows; i++) x[i] = in(row + i), y[i] = out(row + i);
            outputs_of(x, rows, w, k, y, first, last, o);
        }
    }
}

}  // namespace
