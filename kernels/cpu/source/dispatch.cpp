#include <cstring>

#include "kernels.h"

namespace hb {
namespace {

bool runs_here(const Kernels& kernels) {
#ifdef HB_X86
  // the compiler's check asks the system too whether it keeps the wide registers
  if (&kernels == &kernels_avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
  }
  if (&kernels == &kernels_avx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  }
#endif
  return &kernels == &kernels_portable;
}

}  // namespace

const Kernels* find_kernels(const char* name) {
  static const Kernels* const known[] = {
#ifdef HB_X86
      &kernels_avx512,
      &kernels_avx2,
#endif
      &kernels_portable,
  };
  for (const Kernels* kernels : known) {
    if ((name == nullptr || name[0] == '\0' || std::strcmp(name, kernels->name) == 0) && runs_here(*kernels)) {
      return kernels;
    }
  }
  return nullptr;
}

}  // namespace hb
