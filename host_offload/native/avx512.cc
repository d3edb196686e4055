// Kernels for machines with AVX-512.
#include "kernel.h"

#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#include <immintrin.h>

#include "tile.h"
#include "vector_avx512.h"

namespace apex {
const Kernel* Avx512Kernel(Type type) { return FloatKernelTable<Avx512>(Instructions::kAvx512, type); }
}  // namespace apex
#endif
