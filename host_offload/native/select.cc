// Chooses a kernel at run time, so that one binary serves every machine.
#include "kernel.h"

namespace apex {

Instructions MachineInstructions() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Instructions::kAvx512Bf16;
  if (avx512) return Instructions::kAvx512;
  if (avx2) return Instructions::kAvx2;
#endif
  return Instructions::kPortable;
}

const Kernel* SelectKernel(Type type, int width, bool exact, Instructions limit) {
  static const Instructions machine = MachineInstructions();
  const Instructions best = limit < machine ? limit : machine;
  const Kernel* candidates[] = {
#if defined(__x86_64__)
      best >= Instructions::kAvx512Bf16 && type == Type::kBFloat16 && !exact ? Avx512Bf16Kernel() : nullptr,
      best >= Instructions::kAvx512 ? Avx512Kernel(type) : nullptr,
      best >= Instructions::kAvx2 ? Avx2Kernel(type) : nullptr,
#endif
      PortableKernel(type),
  };
  for (const Kernel* kernel : candidates) {
    if (kernel != nullptr && width % kernel->width_unit == 0) return kernel;
  }
  return nullptr;
}

}  // namespace apex
