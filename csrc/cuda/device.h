// What every kernel is made of: vectors of a thread, their loads and stores, and the noise.
//
// Nothing here relies on the compiler's choice of fused multiply-adds: the ones that matter are spelt out.
#pragma once

#include "../half.h"
#include "../lanes/scalar.h"
#include "../normal.h"
#include "task.h"

#include <type_traits>

namespace mmfast::cuda {

// float64 tensors are computed in float64, all others in float32.
template <class T>
using RealOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The elements that a thread handles at once: 16 bytes, and whole Philox blocks.
template <class T>
constexpr int kWidth = sizeof(T) == 2 ? 8 : 4;

// A thread's elements as they are in memory: Whole vectors of 16-byte loads and stores, or single elements.
template <class T>
struct alignas(16) Pack { T at[kWidth<T>]; };

template <int Bytes> struct WordOf;
template <> struct WordOf<2> { using type = unsigned short; };
template <> struct WordOf<4> { using type = unsigned int; };
template <> struct WordOf<8> { using type = unsigned long long; };

// Inputs are not written while a kernel runs, so they go through the read-only path.
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
    for (unsigned i = 0; i < sizeof(pack) / 16; ++i) reinterpret_cast<uint4*>(p)[i] = word[i];
}

// The first n elements from p; zeros after them.
template <class T, bool Whole>
__device__ __forceinline__ Pack<T> read(const T* p, int n) {
    if constexpr (Whole) return read_pack(p);
    Pack<T> pack = {};
#pragma unroll
    for (int i = 0; i < kWidth<T>; ++i)
        if (i < n) pack.at[i] = read_one(p + i);
    return pack;
}
template <class T, bool Whole>
__device__ __forceinline__ void write(T* p, const Pack<T>& pack, int n) {
    if constexpr (Whole) return write_pack(p, pack);
#pragma unroll
    for (int i = 0; i < kWidth<T>; ++i)
        if (i < n) p[i] = pack.at[i];
}

__device__ __forceinline__ double to_real(double a) { return a; }
__device__ __forceinline__ void from_real(double a, double& out) { out = a; }
__device__ __forceinline__ float to_real(float a) { return a; }
__device__ __forceinline__ void from_real(float a, float& out) { out = a; }
__device__ __forceinline__ float to_real(bf16 a) { return widen(a); }  // a shift
#if defined(__CUDA_ARCH__)
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

// The thread's part of the pieces, f(piece, sample, e, n) for each vector: n elements of the sample, from e.
template <class T, class F>
__device__ __forceinline__ void for_vectors(const Cut& cut, int64_t piece, F f) {
    if (piece >= cut.batch * cut.per_sample) return;
    const int64_t b = piece / cut.per_sample, start = (piece - b * cut.per_sample) * cut.piece;
    const int64_t stop = start + cut.piece < cut.elements ? start + cut.piece : cut.elements;
    const int lane = static_cast<int>(threadIdx.x) & (cut.lanes - 1);
    for (int64_t e = start + lane * kWidth<T>; e < stop; e += cut.lanes * kWidth<T>) {
        const int64_t left = stop - e;
        f(b, e, left < kWidth<T> ? static_cast<int>(left) : kWidth<T>);
    }
}
// f(piece) for the pieces of this thread's team. All the threads of a block make the same number of calls,
// the last ones maybe for pieces that are not there, so f may wait for the whole block.
template <class F>
__device__ __forceinline__ void for_pieces(const Cut& cut, F f) {
    const int64_t pieces = cut.batch * cut.per_sample, teams = blockDim.x / cut.lanes;
    const int64_t team = threadIdx.x / cut.lanes;
    for (int64_t first = blockIdx.x * teams; first < pieces; first += gridDim.x * teams) f(first + team);
}

// The noise stream of sample b.
__device__ __forceinline__ NoiseStream noise_stream(const Identity& who, int64_t b) {
    const int64_t seed = who.key ? read_one(who.key) : who.seed, draw = who.key ? read_one(who.key + 1) : who.draw;
    return NoiseStream(seed, draw, who.ids ? read_one(who.ids + b) : b, who.stream);
}
// The normals of the elements from e on, a multiple of the width.
template <class T>
__device__ __forceinline__ void make_noise(const Identity& who, int64_t b, int64_t e, RealOf<T> (&eps)[kWidth<T>]) {
    const NoiseStream stream = noise_stream(who, b);
#pragma unroll
    for (int i = 0; i < kWidth<T>; i += 4) {
        float n[4];
        normals<Scalar>(stream, static_cast<uint32_t>((e + i) / 4), n);
#pragma unroll
        for (int j = 0; j < 4; ++j) eps[i + j] = n[j];
    }
}

}  // namespace mmfast::cuda
