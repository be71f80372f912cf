// Instruction sets in order of preference, and which one runs. The environment variable TORCHCOINFER_ISA forces one
// (read at every call, so that a test can loop over all that the machine has). Names reserved in this order, not
// implemented yet: neon (between scalar and avx2), amx (after avx512).

#pragma once

#include <cstdlib>
#include <string>

#include "check.h"

#if defined(__x86_64__)
#define TORCHCOINFER_X86 1
// What a function of that path is compiled for; a lambda does not inherit it, so such code stands in named functions.
#define TORCHCOINFER_AVX2 __attribute__((target("avx2,fma,f16c")))
#define TORCHCOINFER_AVX512                                                                          \
  __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2," \
                        "avx512vnni,avx512bf16,avx512vpopcntdq,avx512bitalg,bmi2")))
#else
#define TORCHCOINFER_X86 0
#define TORCHCOINFER_AVX2
#define TORCHCOINFER_AVX512
#endif

namespace torchcoinfer {

enum class Isa { scalar, avx2, avx512 };

constexpr const char* isa_name(Isa isa) {
  return isa == Isa::scalar ? "scalar" : isa == Isa::avx2 ? "avx2" : "avx512";
}

inline bool isa_available(Isa isa) {
#if TORCHCOINFER_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512)
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
           __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512bitalg");
#endif
  return isa == Isa::scalar;
}

inline constexpr Isa ISA_ORDER[] = {Isa::avx512, Isa::avx2, Isa::scalar};

// Names of the paths this machine has, best first, comma-separated.
inline std::string available_isas() {
  std::string names;
  for (Isa isa : ISA_ORDER) {
    if (!isa_available(isa)) continue;
    if (!names.empty()) names += ',';
    names += isa_name(isa);
  }
  return names;
}

inline Isa best_isa() {
  for (Isa isa : ISA_ORDER)
    if (isa_available(isa)) return isa;
  return Isa::scalar;
}

inline Isa active_isa() {
  static const Isa best = best_isa();
  const char* forced = std::getenv("TORCHCOINFER_ISA");
  if (!forced || !*forced) return best;
  for (Isa isa : ISA_ORDER)
    if (std::string(forced) == isa_name(isa) && isa_available(isa)) return isa;
  check(false, "isa", "TORCHCOINFER_ISA", "one of " + available_isas() + " (what this machine has)", forced);
  return best;
}

}  // namespace torchcoinfer
