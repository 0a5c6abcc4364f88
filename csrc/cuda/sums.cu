#include "sums.h"
#include "launch.h"

namespace mmfast::cuda {
namespace {

// The second stage, for [batch, columns] sums with `items` parts each.
template <class Real>
void launch_finish(Where where, int64_t batch, int64_t columns, int64_t items, const double* parts, const void* weight,
                   Rows rows, double scale, void* out) {
    const Cut cut{batch * columns, 1, 1, power_of_two(items, kThreads)};
    launch(where, item_threads(cut), cut.lanes, finish<Real>, cut, parts, items, columns, static_cast<const Real*>(weight), rows, scale,
           static_cast<Real*>(out));
}

}  // namespace

int64_t part_count(int64_t elements) { return ceil_div(elements, kItem); }

std::vector<int> squared_error(const Job& call, const SquaredError& to, void* loss) {
    Task task{};
    auto misfits = make_task(call, task);
    if (!misfits.empty()) return misfits;
    task.cut = item_cut(task.cut.batch, task.cut.elements, width(call.type));
    dispatch(call.type, whole(task, call.type, {to.grad}), [&](auto tag, auto vectors) {
        using T = typename decltype(tag)::type;
        launch(call.where, item_threads(task.cut), task.cut.lanes, squared_error<T, decltype(vectors)::value>, task, to);
    });
    const auto finish_as = call.type == Type::f64 ? launch_finish<double> : launch_finish<float>;
    finish_as(call.where, task.cut.batch, 1, task.cut.items, to.parts, to.weight, task.rows, to.scale, loss);
    return {};
}

std::vector<int> dots(const Job& call, const Dots& to, double* sums) {
    Task task{};
    auto misfits = make_task(call, task);
    if (!misfits.empty()) return misfits;
    task.cut = item_cut(task.cut.batch, task.cut.elements, width(call.type));
    dispatch(call.type, whole(task, call.type, {to.grad}), [&](auto tag, auto vectors) {
        launch(call.where, item_threads(task.cut), task.cut.lanes, dots<typename decltype(tag)::type, decltype(vectors)::value>, task, to);
    });
    launch_finish<double>(call.where, task.cut.batch, task.terms + 1, task.cut.items, to.parts, nullptr, Rows{},
                          1.0, sums);
    return {};
}

}  // namespace mmfast::cuda
