// Enough of CUDA to compile the kernels of csrc/cuda with a C++ compiler and to run them on the host:
// blocks one after another, the threads of a block as fibres that change at __syncthreads.
//
// Included before everything else (-include). What it cannot show is said in test_cuda_kernel.py.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include <ucontext.h>

#define __trap() std::abort()
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after another

struct dim3 { unsigned x = 1, y = 1, z = 1; };
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace mmfast_shim {

inline const char* fault = nullptr;  // what went wrong in a kernel, thrown by launch
inline bool backwards = false;       // run the threads from the last to the first
inline bool idle = false;            // run nothing at all: benchmarks/host.py times what comes before

struct Fibre {
    static constexpr size_t kStack = 256 << 10;
    std::unique_ptr<char[]> stack{new char[kStack]};
    ucontext_t first;
    jmp_buf at;
    bool started = false, running = false;
};
inline std::vector<Fibre> fibres;
inline Fibre* current = nullptr;
inline jmp_buf scheduler;
inline void (*body)(void*) = nullptr;
inline void* body_argument = nullptr;

inline void pause() {
    if (_setjmp(current->at) == 0) _longjmp(scheduler, 1);
}
inline void fibre_main() {  // a fibre lives for many kernels: making one is slow
    for (;;) {
        body(body_argument);
        current->running = false;
        pause();
    }
}
inline void resume(Fibre& fibre) {
    current = &fibre;
    if (_setjmp(scheduler) != 0) return;
    if (fibre.started) _longjmp(fibre.at, 1);
    fibre.started = true;
    getcontext(&fibre.first);
    fibre.first.uc_stack.ss_sp = fibre.stack.get();
    fibre.first.uc_stack.ss_size = Fibre::kStack;
    makecontext(&fibre.first, fibre_main, 0);
    setcontext(&fibre.first);
}

// All threads of a block, from barrier to barrier. Either all wait at a barrier or all have ended.
inline void run_block(unsigned threads) {
    for (unsigned t = 0; t < threads; ++t) fibres[t].running = true;
    for (unsigned running = threads; running > 0;) {
        const unsigned before = running;
        running = 0;
        for (unsigned i = 0; i < threads; ++i) {
            const unsigned t = backwards ? threads - 1 - i : i;
            if (!fibres[t].running) continue;
            threadIdx.x = t;
            resume(fibres[t]);
            running += fibres[t].running;
        }
        if (running != 0 && running != before) fault = "a barrier that not all threads of the block reach";
    }
}

template <class... Parameters, class... Arguments>
void launch(unsigned blocks, unsigned threads, void (*kernel)(Parameters...), const Arguments&... arguments) {
    if (idle) return;
    if (fibres.size() < threads) {
        fibres.clear();
        fibres = std::vector<Fibre>(threads);
    }
    auto call = [&] { kernel(arguments...); };
    body = [](void* f) { (*static_cast<decltype(call)*>(f))(); };
    body_argument = std::addressof(call);
    gridDim.x = blocks, blockDim.x = threads;
    fault = nullptr;
    for (unsigned b = 0; b < blocks; ++b) {
        blockIdx.x = b;
        run_block(threads);
    }
    body_argument = nullptr;
    if (fault) throw std::runtime_error(fault);
}

inline void check_aligned(const void* p, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes != 0) fault = "a misaligned access";
}

}  // namespace mmfast_shim

inline void __syncthreads() {
    const unsigned me = threadIdx.x;
    mmfast_shim::pause();
    threadIdx.x = me;
}

struct uint4 { unsigned x, y, z, w; };

// Vector accesses of unaligned addresses are faults on the device.
template <class T>
T __ldg(const T* p) {
    mmfast_shim::check_aligned(p, sizeof(T));
    T value;
    memcpy(&value, static_cast<const void*>(p), sizeof(T));
    return value;
}
template <class T>
void __stwb(T* p, T value) {
    mmfast_shim::check_aligned(p, sizeof(T));
    memcpy(static_cast<void*>(p), &value, sizeof(T));
}
