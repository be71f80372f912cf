// Instruction sets in order of preference, and which one runs. The environment variable TORCHCOINFER_ISA forces one
// (read at every call, so that a test can loop over all that the machine has).
//
// neon is every aarch64 machine; which of its extensions (dotprod, i8mm) a call uses is asked from the machine alone.
// amx is avx512 with int8 tiles: what has no kernel for tiles runs the one for AVX-512.

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
#include "cpu/tiles_amx.h"
#else
#define TORCHCOINFER_X86 0
#define TORCHCOINFER_AVX2
#define TORCHCOINFER_AVX512
#endif

#if defined(__aarch64__)
#define TORCHCOINFER_ARM 1
// g++ 12 refuses "+dotprod" and "+i8mm" by themselves.
#define TORCHCOINFER_DOTPROD __attribute__((target("arch=armv8.2-a+dotprod")))
#define TORCHCOINFER_I8MM __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#else
#define TORCHCOINFER_ARM 0
#endif

namespace torchcoinfer {

enum class Isa { scalar, neon, avx2, avx512, amx };

constexpr const char* isa_name(Isa isa) {
  constexpr const char* NAMES[] = {"scalar", "neon", "avx2", "avx512", "amx"};
  return NAMES[static_cast<int>(isa)];
}

// Whether kernels for AVX-512 run on that path.
constexpr bool has_avx512(Isa isa) {
  return isa == Isa::avx512 || isa == Isa::amx;
}

#if TORCHCOINFER_ARM
enum class ArmLevel { base, dotprod, i8mm };

inline ArmLevel find_arm_level() {
#if defined(__linux__)
  constexpr unsigned long DOTPROD = 1ul << 20, I8MM = 1ul << 13;  // HWCAP_ASIMDDP, HWCAP2_I8MM
  if (!(getauxval(AT_HWCAP) & DOTPROD)) return ArmLevel::base;
  return getauxval(AT_HWCAP2) & I8MM ? ArmLevel::i8mm : ArmLevel::dotprod;
#elif defined(__ARM_FEATURE_MATMUL_INT8) && defined(__ARM_FEATURE_DOTPROD)
  return ArmLevel::i8mm;  // elsewhere: what the compiler was told to build for
#elif defined(__ARM_FEATURE_DOTPROD)
  return ArmLevel::dotprod;
#else
  return ArmLevel::base;
#endif
}

inline ArmLevel arm_level() {
  static const ArmLevel level = find_arm_level();
  return level;
}
#endif

inline bool isa_available(Isa isa) {
#if TORCHCOINFER_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (isa == Isa::avx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
                      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
                      __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512bitalg");
  if (isa == Isa::avx512) return avx512;
  if (isa == Isa::amx) return avx512 && tiles_available();
#endif
#if TORCHCOINFER_ARM
  if (isa == Isa::neon) return true;
#endif
  return isa == Isa::scalar;
}

inline constexpr Isa ISA_ORDER[] = {Isa::amx, Isa::avx512, Isa::avx2, Isa::neon, Isa::scalar};

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
