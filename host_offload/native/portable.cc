// Kernels for any machine, through the vector extensions of GCC and Clang.
#include <cstring>

#include "kernel.h"
#include "tile.h"

namespace apex {
namespace {

struct Portable {
  typedef float F __attribute__((vector_size(32), aligned(4)));
  typedef int32_t I __attribute__((vector_size(32), aligned(4)));
  typedef uint32_t U __attribute__((vector_size(32), aligned(4)));
  typedef uint16_t H __attribute__((vector_size(16), aligned(2)));
  static constexpr int kLanes = 8;
  static constexpr int kAccumulators = 4;
  static constexpr int kMaxHeads = 1;

  static inline F Set(float x) { return F{x, x, x, x, x, x, x, x}; }
  static inline F Load(const float* p) { return *reinterpret_cast<const F*>(p); }
  static inline void Store(float* p, F x) { *reinterpret_cast<F*>(p) = x; }
  static inline F Add(F a, F b) { return a + b; }
  static inline F Sub(F a, F b) { return a - b; }
  static inline F Mul(F a, F b) { return a * b; }
  static inline F Div(F a, F b) { return a / b; }
  static inline F MulAdd(F a, F b, F c) { return a * b + c; }
  // The second operand wins where either is NaN.
  static inline F Max(F a, F b) { return a > b ? a : b; }
  static inline F Abs(F x) { return (F)((U)x & 0x7fffffffu); }
  // `magnitude`, which is not negative, with the sign of x.
  static inline F WithSign(F magnitude, F x) { return (F)((U)magnitude | ((U)x & 0x80000000u)); }
  // x where a < b, else y.
  static inline F WhereLess(F a, F b, F x, F y) { return a < b ? x : y; }
  // Adding and taking away 1.5 * 2^23 leaves a rounded integer for |x| below 2^22.
  static inline F Round(F x) { return (x + Set(12582912.0f)) - Set(12582912.0f); }
  // Below the smallest normal number the result is zero.
  static inline F ScaleByPowerOfTwo(F x, F n) {
    const F whole = n == n ? n : Set(0.0f);
    const I power = __builtin_convertvector(whole, I) << 23;
    const F scaled = (F)((I)x + power);
    const F kept = whole >= Set(-125.0f) ? scaled : Set(0.0f);
    return x == x ? kept : x;
  }
  // See Avx512: nothing to be done where loads are not the limit.
  template <class T>
  static inline void KeepOrder(F&, const T*&) {}

  static inline float Sum(F x) { return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7])); }
  // Sums of the lanes of a, b, c and d, and zeros.
  static inline F SumWithinLanes(F a, F b, F c, F d) { return F{Sum(a), Sum(b), Sum(c), Sum(d)}; }
  // The first halves of both, one behind the other.
  static inline F SumAcrossLanes(const F (&x)[2]) {
    return F{x[0][0], x[0][1], x[0][2], x[0][3], x[1][0], x[1][1], x[1][2], x[1][3]};
  }

  // Heads come one at a time here, so every lane belongs to the same one.
  template <int kSlots>
  static inline F Repeat(const float* p) {
    return Set(*p);
  }
  template <int kSlots>
  static inline F MaxBySlot(F x) {
    float best = x[0];
    for (int i = 1; i < kLanes; ++i) best = x[i] > best ? x[i] : best;
    return Set(best);
  }
  template <int kSlots>
  static inline F SumBySlot(F x) {
    return Set(Sum(x));
  }
  static inline F ZeroIfMinusInfinity(F x) { return x == Set(-__builtin_inff()) ? Set(0.0f) : x; }
  static inline unsigned Greater(F a, F b) { return a[0] > b[0]; }

  static inline void Load2(const float* p, F& a, F& b) {
    a = Load(p);
    b = Load(p + kLanes);
  }
  static inline void Load2(const BFloat16* p, F& a, F& b) {
    U x;
    std::memcpy(&x, p, sizeof x);
    a = (F)(x << 16);
    b = (F)(x & 0xffff0000u);
  }
  static inline void Load2(const Float16* p, F& a, F& b) {
    a = Widen(p);
    b = Widen(p + kLanes);
  }
  // The exponent is moved in place and rebiased. A subnormal half becomes 2^-14 + value - 2^-14: XLA's threads treat
  // subnormal floats as zero, so none may arise on the way.
  static inline F Widen(const Float16* p) {
    H half;
    std::memcpy(&half, p, sizeof half);
    const U x = __builtin_convertvector(half, U);
    const U magnitude = (x & 0x7fffu) << 13;
    const U normal = magnitude + 0x38000000u;
    const F small = (F)(magnitude + 0x38800000u) - Set(0x1p-14f);
    const U infinite = (U)(magnitude >= (U{} + 0x0f800000u)) & 0x7f800000u;
    const U bits = magnitude < (U{} + 0x00800000u) ? (U)small : (normal | infinite);
    return (F)(bits | ((x & 0x8000u) << 16));
  }

  // Which column the j-th float of a loaded pair of vectors is.
  template <class T>
  static constexpr int Column(int j) {
    return IsInterleaved<T>() ? (j < 8 ? 2 * j : 2 * (j - 8) + 1) : j;
  }
};

}  // namespace

const Kernel* PortableKernel(Type type) { return FloatKernelTable<Portable>(Instructions::kPortable, type); }

}  // namespace apex
