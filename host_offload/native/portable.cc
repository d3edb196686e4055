// Kernels for any machine, through the vector extensions of GCC and Clang.
#include <cstring>

#include "kernel.h"
#include "tile.h"

namespace apex {
namespace {

struct Portable {
  typedef float F __attribute__((vector_size(32), aligned(4)));
  typedef int32_t I __attribute__((vector_size(32), aligned(4)));
  typedef uint32_t Words __attribute__((vector_size(32), aligned(4)));
  typedef uint16_t H __attribute__((vector_size(16), aligned(2)));
  static constexpr int kLanes = 8;
  static constexpr int kAccumulators = 4;
  static constexpr int kMaxHeads = 1;

  static inline F Set(float x) { return F{x, x, x, x, x, x, x, x}; }
  static inline F Load(const float* p) { return *reinterpret_cast<const F*>(p); }
  static inline void Store(float* p, F x) { *reinterpret_cast<F*>(p) = x; }
  static inline F MulAdd(F a, F b, F c) { return a * b + c; }
  // The second operand wins where either is NaN.
  static inline F Max(F a, F b) { return a > b ? a : b; }
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
  template <int kSlots, class Combine>
  static inline F Fold(F x, Combine combine) {
    x = combine(x, F{x[4], x[5], x[6], x[7], x[0], x[1], x[2], x[3]});
    x = combine(x, F{x[1], x[0], x[3], x[2], x[5], x[4], x[7], x[6]});
    return combine(x, F{x[2], x[3], x[0], x[1], x[6], x[7], x[4], x[5]});
  }
  static inline unsigned Greater(F a, F b) { return a[0] > b[0]; }

  // The exponent is moved in place and rebiased. A subnormal half becomes 2^-14 + value - 2^-14: XLA's threads treat
  // subnormal floats as zero, so none may arise on the way.
  static inline F Load(const Float16* p) {
    H half;
    std::memcpy(&half, p, sizeof half);
    const Words x = __builtin_convertvector(half, Words);
    const Words magnitude = (x & 0x7fffu) << 13;
    const Words normal = magnitude + 0x38000000u;
    const F small = (F)(magnitude + 0x38800000u) - Set(0x1p-14f);
    const Words infinite = (Words)(magnitude >= (Words{} + 0x0f800000u)) & 0x7f800000u;
    const Words bits = magnitude < (Words{} + 0x00800000u) ? (Words)small : (normal | infinite);
    return (F)(bits | ((x & 0x8000u) << 16));
  }
};

}  // namespace

const Kernel* PortableKernel(Type type) { return FloatKernelTable<Portable>(Instructions::kPortable, type); }

}  // namespace apex
