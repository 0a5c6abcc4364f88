// The building blocks of all kernels: a thread's vectors, their loads and stores, and the noise.
//
// Nothing here relies on the compiler to fuse multiply-adds: those that matter are explicit.
#pragma once

#include "../half.h"
#include "../lanes/scalar.h"
#include "../normal.h"
#include "task.h"

#include <cstring>
#include <type_traits>

namespace mmfast::cuda {

// float64 tensors are computed in float64, all others in float32.
template <class T>
using RealOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The number of elements that a thread handles at once: at least 16 bytes, and whole Philox blocks.
template <class T>
constexpr int kWidth = sizeof(T) == 2 ? 8 : 4;

// The number of blocks that should be resident on a multiprocessor, so that enough loads are in flight. It
// limits the registers of a thread: 64 for 4 blocks, 80 for 3. `most` is the number at which a kernel does not
// yet spill. Kernels that move single elements are not tuned.
template <class T, bool Whole>
constexpr int resident(int most) {
    return !Whole ? 1 : sizeof(T) == 4 ? 4 : most;
}

// A thread's elements as stored in memory, moved as Whole vectors of 16-byte accesses or as single elements.
template <class T>
struct alignas(16) Pack { T at[kWidth<T>]; };

template <int Bytes> struct WordOf;
template <> struct WordOf<2> { using type = unsigned short; };
template <> struct WordOf<4> { using type = unsigned int; };
template <> struct WordOf<8> { using type = unsigned long long; };

// Inputs are not written while a kernel runs, so they are loaded through the read-only path.
template <class T>
__device__ __forceinline__ T read_one(const T* p) {
    const auto word = __ldg(reinterpret_cast<const typename WordOf<sizeof(T)>::type*>(p));
    T value;
    memcpy(&value, &word, sizeof(T));
    return value;
}
template <class T>
__device__ __forceinline__ Pack<T> read_pack(const T* p) {
    Pack<T> pack;
    uint4 word[sizeof(pack) / 16];
#pragma unroll
    for (unsigned i = 0; i < sizeof(pack) / 16; ++i) word[i] = __ldg(reinterpret_cast<const uint4*>(p) + i);
    memcpy(&pack, word, sizeof(pack));
    return pack;
}
template <class T>
__device__ __forceinline__ void write_pack(T* p, const Pack<T>& pack) {
    uint4 word[sizeof(pack) / 16];
    memcpy(word, &pack, sizeof(pack));
#pragma unroll
    for (unsigned i = 0; i < sizeof(pack) / 16; ++i) __stwb(reinterpret_cast<uint4*>(p) + i, word[i]);
}

// The first n elements from p, followed by zeros.
template <class T, bool Whole>
__device__ __forceinline__ Pack<T> read(const T* p, int n) {
    if constexpr (Whole) {
        return read_pack(p);
    } else {
        Pack<T> pack = {};
#pragma unroll
        for (int i = 0; i < kWidth<T>; ++i)
            if (i < n) pack.at[i] = read_one(p + i);
        return pack;
    }
}
template <class T, bool Whole>
__device__ __forceinline__ void write(T* p, const Pack<T>& pack, int n) {
    if constexpr (Whole) {
        write_pack(p, pack);
    } else {
#pragma unroll
        for (int i = 0; i < kWidth<T>; ++i)
            if (i < n) p[i] = pack.at[i];
    }
}

__device__ __forceinline__ double to_real(double a) { return a; }
__device__ __forceinline__ void from_real(double a, double& out) { out = a; }
__device__ __forceinline__ float to_real(float a) { return a; }
__device__ __forceinline__ void from_real(float a, float& out) { out = a; }
#if defined(__CUDA_ARCH__)
// In assembly, also because the compiler then widens a value where it is used. Widening it at the load would
// take twice the registers.
__device__ __forceinline__ float to_real(bf16 a) {
    float value;
    asm("mov.b32 %0, {%1, %2};" : "=f"(value) : "h"(static_cast<unsigned short>(0)), "h"(a.bits));
    return value;
}
__device__ __forceinline__ float to_real(f16 a) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(a.bits));
    return value;
}
__device__ __forceinline__ void from_real(float a, f16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(a)); }
__device__ __forceinline__ void from_real(float a, bf16& out) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(a));
}
#else
__device__ __forceinline__ float to_real(bf16 a) { return widen(a); }
__device__ __forceinline__ float to_real(f16 a) { return widen(a); }
__device__ __forceinline__ void from_real(float a, f16& out) { narrow(a, out); }
__device__ __forceinline__ void from_real(float a, bf16& out) { narrow(a, out); }
#endif

template <class T>
__device__ __forceinline__ Pack<T> pack_of(const RealOf<T> (&x)[kWidth<T>]) {
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < kWidth<T>; ++i) from_real(x[i], pack.at[i]);
    return pack;
}

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fused(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// Without sums: calls f(sample, e, n) for every vector of this thread, n elements of the sample from e.
template <class T, class F>
__device__ __forceinline__ void for_vectors(const Cut& cut, F f) {
    const int64_t vectors = (cut.elements + kWidth<T> - 1) / kWidth<T>, stride = int64_t{gridDim.x} * blockDim.x;
#pragma unroll 1
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < cut.batch * vectors; i += stride) {
        const int64_t b = i / vectors, e = (i - b * vectors) * kWidth<T>;
        f(b, e, cut.elements - e < kWidth<T> ? static_cast<int>(cut.elements - e) : kWidth<T>);
    }
}

// With sums: calls f(item) for the items of this thread's team. All threads of a block make the same number of
// calls, the last ones possibly for items that do not exist, so f may synchronise the whole block.
template <class F>
__device__ __forceinline__ void for_items(const Cut& cut, F f) {
    const int64_t items = cut.batch * cut.items, teams = blockDim.x / cut.lanes;
#pragma unroll 1
    for (int64_t first = blockIdx.x * teams; first < items; first += gridDim.x * teams)
        f(first + threadIdx.x / cut.lanes);
}
// Calls f(e, n) for this thread's vectors of item `i` of a sample.
template <class T, class F>
__device__ __forceinline__ void for_vectors_of_item(const Cut& cut, int64_t i, F f) {
    const int64_t start = i * kItem, left = cut.elements - start;
    const int size = left < kItem ? static_cast<int>(left) : static_cast<int>(kItem);
    const int lane = static_cast<int>(threadIdx.x) & (cut.lanes - 1);
#pragma unroll 1
    for (int e = lane * kWidth<T>; e < size; e += cut.lanes * kWidth<T>)
        f(start + e, size - e < kWidth<T> ? size - e : kWidth<T>);
}

// The noise stream of sample b. The compiler is kept from hoisting it out of loops: the round keys are cheap to
// recompute, and would fill the registers.
__device__ __forceinline__ NoiseStream noise_stream(const Identity& who, int64_t b) {
    int64_t seed = who.key ? read_one(who.key) : who.seed;
    const int64_t draw = who.key ? read_one(who.key + 1) : who.draw;
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+l"(seed));
#endif
    return NoiseStream(seed, draw, who.ids ? read_one(who.ids + b) : b, who.stream);
}
// The normals of the elements from e on, where e is a multiple of the width: four at a time, in a loop that
// rotates the array and is not unrolled, again to save registers.
template <class T>
__device__ __forceinline__ void make_noise(const Identity& who, int64_t b, int64_t e, RealOf<T> (&eps)[kWidth<T>]) {
    constexpr int kV = kWidth<T>;
    const uint32_t first = static_cast<uint32_t>(e / 4);
#pragma unroll 1
    for (uint32_t j = 0; j < kV / 4; ++j) {
        float n[4];
        normals<Scalar>(noise_stream(who, b), first + j, n);
#pragma unroll
        for (int i = 0; i < kV; ++i) eps[i] = i + 4 < kV ? eps[(i + 4) % kV] : n[i % 4];
    }
}

}  // namespace mmfast::cuda
