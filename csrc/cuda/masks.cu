#include "masks.h"
#include "launch.h"

namespace mmfast::cuda {

void random_words(Where where, const Identity& identity, int64_t batch, int64_t count, int64_t* out) {
    const Cut cut = vector_cut(batch, count);
    const bool whole = count % kWidth<int64_t> == 0 && aligned(out);
    launch(where, vector_threads(cut, kWidth<int64_t>), 1, whole ? random_words<true> : random_words<false>, cut, identity, out);
}

void first_visible(Where where, const Identity& identity, int64_t batch, int64_t blocks, const int64_t* hidden,
                   int64_t of_all, int64_t* out) {
    launch(where, batch * limits.threads, 1, first_visible_kernel, identity, batch, blocks, hidden, of_all, out);
}

namespace {
template <class T>
void launch_mask(Where where, const Identity& identity, int64_t batch, int64_t plane, const Mask& to) {
    const Cut cut = vector_cut(batch, plane);
    const bool whole = plane % kWidth<T> == 0 && aligned(to.x) && aligned(to.out) && aligned(to.mask);
    launch(where, vector_threads(cut, kWidth<T>), 1, whole ? block_mask<T, true> : block_mask<T, false>, cut, identity, to);
}
}  // namespace

void block_mask(Where where, const Identity& identity, Type type, int64_t batch, int64_t height, const Mask& to) {
    const int size = element_size(type);
    const auto launch_as = size == 2 ? launch_mask<uint16_t> : size == 4 ? launch_mask<uint32_t> : launch_mask<uint64_t>;
    launch_as(where, identity, batch, height * to.width, to);
}

}  // namespace mmfast::cuda
