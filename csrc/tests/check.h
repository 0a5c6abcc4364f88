// Shared by the checks of the kernels: failing with a reason, memory of an exact size, and random numbers.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>

#include "../cpu/plan.h"

namespace mmfast::tests {

[[noreturn]] inline void fail(const std::string& what) {
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
    std::exit(1);
}
template <class What>  // a string, or a function that returns one and is called only on failure
void expect(bool holds, const What& what) {
    if (holds) return;
    if constexpr (std::is_invocable_v<What>) fail(what());
    else fail(what);
}

// A separate heap allocation. Nothing follows the last byte, so that the address sanitizer detects every access beyond
// it. For stores that it does not detect (past the caches), `margin` bytes of a known value follow instead. `offset`
// bytes of that value precede the first byte, to misalign it. The contents are NaN in every type.
class Buffer {
public:
    Buffer() = default;
    explicit Buffer(int64_t bytes, int64_t offset = 0, int64_t margin = 0)
        : bytes_(bytes), offset_(offset), margin_(margin) {
        if (bytes == 0) return;  // null, like an empty tensor's address
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, static_cast<size_t>(offset + bytes + margin)) != 0) fail("out of memory");
        data_.reset(static_cast<unsigned char*>(memory));
        std::memset(data_.get(), kGuard, offset + bytes + margin);
        std::memset(data_.get() + offset, 0xFF, bytes);
    }
    template <class T = void>
    T* at() const { return reinterpret_cast<T*>(data_ ? data_.get() + offset_ : nullptr); }
    int64_t bytes() const { return bytes_; }
    bool same(const Buffer& other) const {
        return bytes_ == other.bytes_ && (bytes_ == 0 || std::memcmp(at(), other.at(), bytes_) == 0);
    }
    bool guards_hold() const {
        for (int64_t i = 0; data_ && i < offset_ + margin_; ++i)
            if (data_.get()[i < offset_ ? i : bytes_ + i] != kGuard) return false;
        return true;
    }

private:
    static constexpr unsigned char kGuard = 0xA5;
    struct Free { void operator()(unsigned char* p) const { std::free(p); } };
    std::unique_ptr<unsigned char, Free> data_;
    int64_t bytes_ = 0, offset_ = 0, margin_ = 0;
};

class Random {  // splitmix64
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t bits() {
        uint64_t z = state_ += 0x9E3779B97F4A7C15u;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
        z = (z ^ z >> 27) * 0x94D049BB133111EBu;
        return z ^ z >> 31;
    }
    int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
    bool one_in(int64_t n) { return below(n) == 0; }
    double uniform(double low, double high) { return low + (high - low) * static_cast<double>(bits() >> 11) * 0x1p-53; }
    template <class T, int N>
    T one_of(const T (&choices)[N]) { return choices[below(N)]; }

private:
    uint64_t state_;
};

}  // namespace mmfast::tests
