// Block-scaled E4M3 both ways, behind the same plain C ABI as native.cpp. fp8.py checks the arguments; reference.py says what is right.
// A code is turned into its value by shifting bits, which vectorises where a table of 256 values would need gathers.
// ld: elements from one row to the next. br, bc: rows and columns of a block, which has one scale; scales [ceil(rows / br), ceil(cols / bc)].

#include <cstdint>

namespace {

union Bits {
  uint32_t i;
  float f;
};

inline float from_bits(uint32_t i) {
  Bits u;
  u.i = i;
  return u.f;
}

inline uint32_t to_bits(float f) {
  Bits u;
  u.f = f;
  return u.i;
}

// Sign, 4 exponent bits of bias 7, 3 mantissa bits; 0x7f and 0xff are NaN, there is no infinity; below 8 the value is a multiple of 2^-9.
inline float from_e4m3(uint32_t code) {
  const uint32_t size = code & 0x7f;
  const uint32_t small = to_bits(static_cast<float>(static_cast<int32_t>(size)) * 0.001953125f);
  uint32_t value = size < 8 ? small : (size << 20) + (120u << 23);
  value = size == 0x7f ? 0x7fc00000u : value;
  return from_bits(value | (code & 0x80) << 24);
}

// To nearest, ties to even, |x| at most 448. Adding 2^14 rounds to multiples of 2^-9, and a carry into 8 is the least normal code.
inline uint32_t to_e4m3(float x) {
  const uint32_t bits = to_bits(x), size = bits & 0x7fffffff;
  const uint32_t small = to_bits(from_bits(size) + 16384.0f) - to_bits(16384.0f);
  const uint32_t normal = ((size + 0x7ffff + (size >> 20 & 1)) >> 20) - (120u << 3);
  return (size < 0x3c800000u ? small : normal) | (bits >> 24 & 0x80);  // 0x3c800000 is 2^-6, the least normal value
}

inline uint32_t bf16_bits(float x) {  // the value rounded to BF16, ties to even, still as FP32 bits; NaN stays NaN
  const uint32_t i = to_bits(x);
  const uint32_t rounded = (i + 0x7fff + (i >> 16 & 1)) & 0xffff0000u;
  return (i & 0x7fffffff) > 0x7f800000u ? (i | 0x400000) & 0xffff0000u : rounded;
}

struct Fp32 {
  using Out = float;
  static float put(float x) { return x; }
};
struct Bf16 {
  using Out = uint16_t;
  static uint16_t put(float x) { return static_cast<uint16_t>(bf16_bits(x) >> 16); }
};
struct Bf16InFp32 {
  using Out = float;
  static float put(float x) { return from_bits(bf16_bits(x)); }
};

template <class Format>
void dequantize_(const uint8_t* codes, long ld, const float* scales, long br, long bc, long first_row, void* out, long ld_out, long rows, long cols) {
  const long blocks = (cols + bc - 1) / bc;
#pragma omp parallel for schedule(static)
  for (long i = 0; i < rows; ++i) {
    const float* scale = scales + (first_row + i) / br * blocks;
    const uint8_t* __restrict from = codes + i * ld;
    typename Format::Out* __restrict to = static_cast<typename Format::Out*>(out) + i * ld_out;
    for (long b = 0; b < blocks; ++b) {
      const float s = scale[b];
      const long end = (b + 1) * bc < cols ? (b + 1) * bc : cols;
      for (long j = b * bc; j < end; ++j) to[j] = Format::put(from_e4m3(from[j]) * s);
    }
  }
}

inline float wide(float x) { return x; }
inline float wide(uint16_t x) { return from_bits(static_cast<uint32_t>(x) << 16); }

template <class T>
long quantize_(const T* values, long ld, long br, long bc, int power_of_two, uint8_t* codes, float* scales, long rows, long cols) {
  const long blocks = (cols + bc - 1) / bc, tall = (rows + br - 1) / br;
  long bad = tall * blocks;
#pragma omp parallel for schedule(static) reduction(min : bad)
  for (long b = 0; b < tall * blocks; ++b) {
    const long top = b / blocks * br, left = b % blocks * bc;
    const long bottom = top + br < rows ? top + br : rows, right = left + bc < cols ? left + bc : cols;
    uint32_t most = 0;  // as integers, sizes keep their order, and infinity and NaN come last
    for (long i = top; i < bottom; ++i) {
      const T* row = values + i * ld;
      for (long j = left; j < right; ++j) {
        const uint32_t size = to_bits(wide(row[j])) & 0x7fffffff;
        most = size > most ? size : most;
      }
    }
    if (most >= 0x7f800000u) {
      bad = b < bad ? b : bad;
      continue;
    }
    const float amax = from_bits(most);
    float s = (amax < 1e-4f ? 1e-4f : amax) / 448.0f;
    if (power_of_two) s = from_bits((to_bits(s) + 0x7fffff) & 0xff800000u);
    scales[b] = s;
    for (long i = top; i < bottom; ++i) {
      const T* __restrict row = values + i * ld;
      uint8_t* __restrict out = codes + i * cols;
      for (long j = left; j < right; ++j) {
        float x = wide(row[j]) / s;
        x = x > 448.0f ? 448.0f : x;
        x = x < -448.0f ? -448.0f : x;
        out[j] = static_cast<uint8_t>(to_e4m3(x));
      }
    }
  }
  return bad;
}

}  // namespace

extern "C" {

// format 0: FP32, 1: BF16, 2: values rounded to BF16 and held in FP32. `first_row` is the row of the whole matrix that codes start at.
void rq_fp8_dequantize(const uint8_t* codes, long ld, const float* scales, long br, long bc, long first_row, void* out, long ld_out, long rows,
                       long cols, int format) {
  auto run = format == 0 ? dequantize_<Fp32> : format == 1 ? dequantize_<Bf16> : dequantize_<Bf16InFp32>;
  run(codes, ld, scales, br, bc, first_row, out, ld_out, rows, cols);
}

// Returns the number of the first block, in row order, that holds an infinity or NaN; the number of blocks where there is none.
long rq_fp8_quantize(const void* values, int bf16, long ld, long br, long bc, int power_of_two, uint8_t* codes, float* scales, long rows, long cols) {
  if (bf16) return quantize_(static_cast<const uint16_t*>(values), ld, br, bc, power_of_two, codes, scales, rows, cols);
  return quantize_(static_cast<const float*>(values), ld, br, bc, power_of_two, codes, scales, rows, cols);
}
}
