// What translated kernels call. Each file of them begins with this text.
#include <fenv.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef unsigned __int128 uint128_t;
typedef __int128 int128_t;

// Where a thread is: PTX's special registers.
typedef struct {
  uint32_t tid_x, tid_y, tid_z, ntid_x, ntid_y, ntid_z;
  uint32_t ctaid_x, ctaid_y, ctaid_z, nctaid_x, nctaid_y, nctaid_z, laneid;
} Place;

// ---------------------------------------------------------------- memory

#define RANGES 64
static uint64_t low_[RANGES], high_[RANGES], fault_[3];
static int ranges_;
static uint8_t spare_[64] __attribute__((aligned(64)));
static uint8_t smem_[1 << 18] __attribute__((aligned(256)));

// What the next launch may touch. With no range, nothing is checked.
void memory(int n, const uint64_t *low, const uint64_t *high) {
  ranges_ = n < RANGES ? n : RANGES;
  memset(fault_, 0, sizeof fault_);
  memcpy(low_, low, ranges_ * sizeof *low);
  memcpy(high_, high, ranges_ * sizeof *high);
}
// The first access that was wrong: 1 for a load or 2 for a store, its address, its bytes.
const uint64_t *fault(void) { return fault_; }

// The host's pointer for a global address. A wrong access goes to spare memory.
static inline void *global(uint64_t address, unsigned size, int store) {
  if (!ranges_) return (void *)address;
  if (address % size == 0)
    for (int i = 0; i < ranges_; i++)
      if (address >= low_[i] && address + size <= high_[i]) return (void *)address;
  if (!fault_[0]) fault_[0] = 1 + store, fault_[1] = address, fault_[2] = size;
  return spare_;
}

// ---------------------------------------------------------------- floats and their bits

#define BITS(name, F, U)               \
  static inline F name##f(U bits) {    \
    F value;                           \
    memcpy(&value, &bits, sizeof bits); \
    return value;                      \
  }                                    \
  static inline U name##u(F value) {   \
    U bits;                            \
    memcpy(&bits, &value, sizeof bits); \
    return bits;                       \
  }
BITS(raw16, _Float16, uint16_t)
BITS(raw32, float, uint32_t)
BITS(raw64, double, uint64_t)

static inline float f16(uint16_t x) { return (float)raw16f(x); }
static inline float bf16(uint16_t x) { return raw32f((uint32_t)x << 16); }
static inline float f32(uint32_t x) { return raw32f(x); }
static inline double f64(uint64_t x) { return raw64f(x); }

// A NaN becomes the canonical one, as on a GPU; only float64's payload stays the host's.
static inline uint64_t to_f64(double f) { return raw64u(f); }
static inline uint32_t to_f32(float f) { return f != f ? 0x7fffffffu : raw32u(f); }
static inline uint16_t to_f16(double f) { return f != f ? 0x7fff : raw16u((_Float16)f); }
static inline uint16_t to_bf16(double d) {
  float f = (float)d;
  uint32_t x = raw32u(f);
  if (d != d) return 0x7fff;
  if ((double)f != d && !isinf(f)) {  // round to odd first, so that two roundings are one
    if (fabs((double)f) > fabs(d)) x--;
    x |= 1;
  }
  return (x + 0x7fff + (x >> 16 & 1)) >> 16;
}
static inline float ftz(float f) { return fabsf(f) < 0x1p-126f ? copysignf(0.0f, f) : f; }
static inline double sat(double f) { return f > 0 ? f < 1 ? f : 1 : 0; }

static inline float fmaf_rounded(int mode, float a, float b, float c) {
  fesetround(mode);
  float result = fmaf(a, b, c);
  fesetround(FE_TONEAREST);
  return result;
}

// `nan` says whether a NaN wins (.NaN) or loses. -0 is less than +0.
static inline double least(double a, double b, int nan) {
  if (a != a || b != b) return nan ? NAN : a != a ? b : a;
  if (a == b) return signbit(a) ? a : b;
  return a < b ? a : b;
}
static inline double greatest(double a, double b, int nan) {
  if (a != a || b != b) return nan ? NAN : a != a ? b : a;
  if (a == b) return signbit(a) ? b : a;
  return a > b ? a : b;
}

// To integers of so many bits, saturated. A NaN is 0, or if `wide` the sign bit alone.
static inline int64_t float_to_s(double f, int bits, int wide) {
  if (f != f) return wide ? INT64_MIN >> (64 - bits) : 0;
  double end = ldexp(1, bits - 1);
  if (f >= end) return (int64_t)((1ull << (bits - 1)) - 1);
  if (f < -end) return -(int64_t)(1ull << (bits - 2)) * 2;
  return (int64_t)f;
}
static inline uint64_t float_to_u(double f, int bits, int wide) {
  if (f != f) return wide ? 1ull << (bits - 1) : 0;
  if (f >= ldexp(1, bits)) return ~0ull >> (64 - bits);
  return f < 0 ? 0 : (uint64_t)f;
}

// ---------------------------------------------------------------- bits

static inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, int table) {
  uint32_t result = 0;
  for (int i = 0; i < 8; i++)
    if (table >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}
static inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t bytes = (uint64_t)b << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; i++) {
    uint32_t which = selector >> 4 * i & 15;
    uint8_t byte = bytes >> 8 * (which & 7);
    if (which & 8) byte = byte & 0x80 ? 0xff : 0;  // its sign
    result |= (uint32_t)byte << 8 * i;
  }
  return result;
}
// Fields of n bits from bit p on, of words of w bits.
static inline uint64_t bfe_u(uint64_t a, uint32_t p, uint32_t n, int w) {
  p &= 255, n &= 255;
  if (p >= (uint32_t)w || !n) return 0;
  a >>= p;
  return n >= 64 ? a : a & ((1ull << n) - 1);
}
static inline int64_t bfe_s(int64_t a, uint32_t p, uint32_t n, int w) {
  p &= 255, n &= 255;
  if (!n) return 0;
  int last = (int)(p + n - 1) < w - 1 ? (int)(p + n - 1) : w - 1, have = last - (int)p + 1;
  int64_t sign = -(a >> last & 1);
  if (p >= (uint32_t)w) return sign;
  uint64_t field = bfe_u(a, p, n, w);
  return have >= 64 ? (int64_t)field : (int64_t)(field | (uint64_t)sign << have);
}
static inline uint64_t bfi(uint64_t a, uint64_t b, uint32_t p, uint32_t n, int w) {
  p &= 255, n &= 255;
  if (p >= (uint32_t)w || !n) return b;
  uint64_t mask = (n >= 64 ? ~0ull : (1ull << n) - 1) << p;
  return (b & ~mask) | (a << p & mask);
}
static inline uint32_t shf_l(uint32_t a, uint32_t b, uint32_t n) { return ((uint64_t)b << 32 | a) << n >> 32; }
static inline uint32_t shf_r(uint32_t a, uint32_t b, uint32_t n) { return ((uint64_t)b << 32 | a) >> n; }
static inline uint32_t brev(uint32_t x) {
  uint32_t result = 0;
  for (int i = 0; i < 32; i++) result |= (x >> i & 1) << (31 - i);
  return result;
}
