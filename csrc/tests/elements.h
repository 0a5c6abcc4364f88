// Reads and writes elements of the four types independently of the kernels, and bounds their rounding.
#pragma once

#include <cfloat>
#include <cmath>

#include "check.h"

namespace mmfast::tests {

constexpr Type kTypes[] = {Type::f32, Type::f64, Type::bf16, Type::f16};

inline const char* name_of(Type type) {
    const char* const names[] = {"f32", "f64", "bf16", "f16"};
    return names[static_cast<int>(type)];
}
inline int64_t size_of(Type type) { return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2; }
inline int64_t table_size_of(Type type) { return type == Type::f64 ? 8 : 4; }

// The spacing of numbers just above 1, and the smallest normal number.
inline double epsilon(Type type) {
    const double of[] = {FLT_EPSILON, DBL_EPSILON, 0x1p-7, 0x1p-10};
    return of[static_cast<int>(type)];
}
inline double tiny(Type type) {
    const double of[] = {FLT_MIN, DBL_MIN, FLT_MIN, 0x1p-14};
    return of[static_cast<int>(type)];
}
inline double arithmetic_epsilon(Type type) { return type == Type::f64 ? DBL_EPSILON : FLT_EPSILON; }

// Decodes a 16-bit float by its fields: `fraction` bits, and an exponent with this bias.
inline double by_fields(uint32_t bits, int fraction, int bias) {
    const uint32_t mask = (1u << fraction) - 1, top = (1u << (15 - fraction)) - 1;
    const uint32_t exponent = bits >> fraction & top, rest = bits & mask;
    const double sign = bits & 0x8000u ? -1.0 : 1.0;
    if (exponent == top) return rest ? std::nan("") : sign * HUGE_VAL;
    if (exponent == 0) return sign * std::ldexp(rest, 1 - bias - fraction);
    return sign * std::ldexp(rest + mask + 1, static_cast<int>(exponent) - bias - fraction);
}

template <class T>
T load(const void* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

inline double read(Type type, const void* data, int64_t i) {
    const char* at = static_cast<const char*>(data) + i * size_of(type);
    switch (type) {
        case Type::f32: return load<float>(at);
        case Type::f64: return load<double>(at);
        case Type::bf16: return by_fields(load<uint16_t>(at), 7, 127);
        default: return by_fields(load<uint16_t>(at), 10, 15);
    }
}

// A random value in or near [-2, 2); 16-bit types get random fraction bits.
inline void write_random(Type type, void* data, int64_t i, Random& random) {
    char* at = static_cast<char*>(data) + i * size_of(type);
    const double x = random.uniform(-2.0, 2.0);
    if (type == Type::f64) {
        std::memcpy(at, &x, 8);
        return;
    }
    const float narrow = static_cast<float>(x);
    uint32_t bits = load<uint32_t>(&narrow);
    if (type == Type::f32) {
        std::memcpy(at, &bits, 4);
        return;
    }
    // Of float16, exponents 2^-10 to 2^0.
    const uint64_t any = random.bits();
    bits = type == Type::bf16 ? bits >> 16
                              : static_cast<uint32_t>((any & 0x83FFu) | (5 + (any >> 20) % 11) << 10);
    const auto half = static_cast<uint16_t>(bits);
    std::memcpy(at, &half, 2);
}
inline void write_nan(Type type, void* data, int64_t i) {
    std::memset(static_cast<char*>(data) + i * size_of(type), 0xFF, size_of(type));
}

// A table of the type computed in: [rows, columns] with a gap after each entry, or [1, columns] for all samples.
inline Table make_table(Type type, int64_t rows, int64_t columns, Buffer& memory, Random& random, int64_t zero_one_in) {
    const int64_t gap = 1 + random.below(2), entries = rows * columns;
    const int64_t count = entries > 0 ? (entries - 1) * gap + 1 : 0;
    memory = Buffer(count * table_size_of(type));
    for (int64_t i = 0; i < count; i += gap) {
        const double x = random.one_in(zero_one_in) ? 0.0 : random.uniform(-2.0, 2.0);
        const float narrow = static_cast<float>(x);
        if (type == Type::f64) memory.at<double>()[i] = x;
        else memory.at<float>()[i] = narrow;
    }
    return {memory.at(), rows == 1 ? 0 : columns * gap, gap};
}
inline double read(Type type, const Table& table, int64_t row, int64_t column = 0) {
    const int64_t i = row * table.row_stride + column * table.stride;
    return type == Type::f64 ? static_cast<const double*>(table.data)[i] : static_cast<const float*>(table.data)[i];
}

}  // namespace mmfast::tests
