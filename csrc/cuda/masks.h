// random_words, and block_mask, which hides blocks of an image in the order of the generator's integers.
#pragma once

#include "device.h"

namespace mmfast::cuda {

// Four ranks from one Philox block: word_j * 2^31 + j.
__device__ __forceinline__ void ranks_of(const NoiseStream& stream, uint32_t block, int64_t rank[4]) {
    uint32_t word[4];
    philox<Scalar>(stream, block, word);
#pragma unroll
    for (int i = 0; i < 4; ++i) rank[i] = (static_cast<int64_t>(word[i]) << 31) + (int64_t{4} * block + i);
}

// out: [batch, elements]. Whole: a sample's words are 16-byte aligned, and their number is a multiple of four.
template <bool Whole>
__global__ void __launch_bounds__(kThreads) random_words(const Cut cut, const Identity identity, int64_t* out) {
    static_assert(kWidth<int64_t> == 4, "one Philox block a thread");
    for_vectors<int64_t>(cut, [&](int64_t b, int64_t e, int n) {
        uint32_t word[4];
        philox<Scalar>(noise_stream(identity, b), static_cast<uint32_t>(e / 4), word);
        Pack<int64_t> words;
#pragma unroll
        for (int i = 0; i < 4; ++i) words.at[i] = word[i];
        write<int64_t, Whole>(out + (b * cut.elements + e), words, n);
    });
}

// The rank of each sample's first visible block when the hidden[b] (or of_all) lowest ranks are hidden; above all ranks
// if every block is hidden. A block of threads handles a sample and finds the rank bit by bit: a bit is set if at most
// that many ranks are below the resulting number. The ranks are recomputed each time, which is cheaper than sorting.
inline __global__ void __launch_bounds__(kThreads) first_visible_kernel(const Identity identity, int64_t batch, int64_t blocks,
                                                                        const int64_t* hidden, int64_t of_all, int64_t* out) {
    __shared__ int64_t below[kThreads];
    const unsigned me = threadIdx.x, threads = blockDim.x;
    for (int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
        const NoiseStream stream = noise_stream(identity, b);
        const int64_t count = hidden ? read_one(hidden + b) : of_all;
        int64_t found = 0;
        for (int bit = 62; bit >= 0; --bit) {
            const int64_t candidate = found | (int64_t{1} << bit);
            int64_t mine = 0;
            for (int64_t quad = me; quad * 4 < blocks; quad += threads) {
                int64_t rank[4];
                ranks_of(stream, static_cast<uint32_t>(quad), rank);
#pragma unroll
                for (int i = 0; i < 4; ++i) mine += quad * 4 + i < blocks && rank[i] < candidate;
            }
            below[me] = mine;
            __syncthreads();
            for (unsigned half = threads / 2; half > 0; half /= 2) {
                if (me < half) below[me] += below[me + half];
                __syncthreads();
            }
            if (below[0] <= count) found = candidate;
            __syncthreads();  // before the next bit overwrites below[0]
        }
        if (me == 0) out[b] = count < blocks ? found : INT64_MAX;
    }
}

// T: unsigned integers of the size of x's elements, which are only copied. A sample of the cut is the plane of
// one channel. A thread determines the visibility of its pixels once, then loops over the channels. Vectors
// that are completely hidden are not read.
template <class T, bool Whole>
__global__ void __launch_bounds__(kThreads, resident<T, Whole>(3)) block_mask(const Cut cut, const Identity identity, const Mask to) {
    constexpr int kV = kWidth<T>;
    for_vectors<T>(cut, [&](int64_t b, int64_t e, int n) {
        const NoiseStream stream = noise_stream(identity, b);
        const int64_t threshold = read_one(to.threshold + b);
        // The pixel's block, counted row by row, and its position in it. Divisions are slow, so this is done once.
        const int64_t y = e / to.width;
        int64_t x = e - y * to.width, have = -1, rank[4];
        int64_t down = y / to.block_height, inside_y = y - down * to.block_height;
        int64_t right = x / to.block_width, inside_x = x - right * to.block_width;
        unsigned visible = 0;  // bit i: pixel e + i
        for (int i = 0; i < n; ++i) {
            const int64_t block = down * to.across + right;
            if (block / 4 != have) {
                have = block / 4;
                ranks_of(stream, static_cast<uint32_t>(have), rank);
            }
            const int64_t mine = block & 2 ? (block & 1 ? rank[3] : rank[2]) : (block & 1 ? rank[1] : rank[0]);
            visible |= static_cast<unsigned>(mine >= threshold) << i;
            if (++inside_x == to.block_width) inside_x = 0, ++right;
            if (++x == to.width) {
                x = inside_x = right = 0;
                if (++inside_y == to.block_height) inside_y = 0, ++down;
            }
        }
        Pack<T> mask;
#pragma unroll
        for (int i = 0; i < kV; ++i) mask.at[i] = visible >> i & 1 ? static_cast<T>(to.one) : T(0);
        write<T, Whole>(static_cast<T*>(to.mask) + (b * cut.elements + e), mask, n);
#pragma unroll 4
        for (int64_t c = 0; c < to.channels; ++c) {
            const int64_t at = (b * to.channels + c) * cut.elements + e;
            Pack<T> values = {};
            if (visible) values = read<T, Whole>(static_cast<const T*>(to.x) + at, n);
#pragma unroll
            for (int i = 0; i < kV; ++i) values.at[i] = visible >> i & 1 ? values.at[i] : T(0);
            write<T, Whole>(static_cast<T*>(to.out) + at, values, n);
        }
    });
}

}  // namespace mmfast::cuda
