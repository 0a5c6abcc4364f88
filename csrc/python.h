// Reads tensors from Python without torch's headers: by DLPack's C exchange API if the tensors' type offers
// it (torch 2.10 and later; about 50 ns per tensor), otherwise by their Python attributes.
//
// https://dmlc.github.io/dlpack/latest/c_api.html defines the structs; the API is stable within a major
// version.
#pragma once

#include <Python.h>

#include <array>
#include <cstring>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/layout.h"

namespace mmfast {

// A Python exception is set and only has to be passed on.
struct PythonError : std::exception {};

// An owned reference to an object. Constructing it from null throws, because Python has set an exception.
class Reference {
public:
    explicit Reference(PyObject* object) : object_(object) {
        if (!object) throw PythonError();
    }
    ~Reference() { Py_DECREF(object_); }
    Reference(const Reference&) = delete;
    Reference& operator=(const Reference&) = delete;
    PyObject* get() const { return object_; }

private:
    PyObject* object_;
};

namespace dlpack {
struct Device { int32_t type, id; };
struct DataType { uint8_t code, bits; uint16_t lanes; };
struct Tensor {
    void* data;
    Device device;
    int32_t ndim;
    DataType dtype;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};
struct ExchangeApi {
    struct { uint32_t major, minor; } version;
    ExchangeApi* previous;
    void *allocate, *managed_from_object, *managed_to_object;
    int (*from_object)(void* object, Tensor* out);
    int (*current_stream)(int32_t device_type, int32_t device, void** out);
};
constexpr int kInt = 0, kFloat = 2, kBfloat = 4;
}  // namespace dlpack

inline const dlpack::ExchangeApi*& exchange_api() {
    static const dlpack::ExchangeApi* api = nullptr;
    return api;
}

// The capsule that the tensors' type offers, or None.
inline void use_exchange_api(PyObject* capsule) {
    exchange_api() = nullptr;
    if (capsule == Py_None) return;
    auto* api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    if (!api) throw PythonError();
    while (api && api->version.major != 1) api = api->previous;
    if (api && api->from_object) exchange_api() = api;
}

constexpr int kMaxRank = 16;

// The device of this extension's tensors, as DLPack numbers it: 1 is the CPU, 2 is CUDA.
#ifndef MMFAST_DEVICE
#define MMFAST_DEVICE 1
#endif
constexpr int kDevice = MMFAST_DEVICE;
constexpr const char* kElsewhereText = kDevice == 1 ? "a tensor is not on the CPU" : "a tensor is not on a CUDA device";

inline void expect(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

inline int64_t integer(PyObject* value) {
    const int64_t n = PyLong_AsLongLong(value);
    if (n == -1 && PyErr_Occurred()) throw PythonError();
    return n;
}

inline double real(PyObject* value) {
    const double x = PyFloat_AsDouble(value);
    if (x == -1.0 && PyErr_Occurred()) throw PythonError();
    return x;
}

inline bool yes(PyObject* value) {
    const int truth = PyObject_IsTrue(value);
    if (truth < 0) throw PythonError();
    return truth;
}

// A tensor's address, type, sizes and strides, valid while the tensor lives.
struct View {
    void* data = nullptr;
    int rank = 0, device = 0;
    dlpack::DataType dtype{};
    const int64_t *size = nullptr, *stride = nullptr;

    View() {}  // not defaulted, which would zero own_, although only tensors read without DLPack use it
    explicit View(PyObject* tensor) { read(tensor); }
    void read(PyObject* tensor) {
        if (exchange_api()) {
            dlpack::Tensor t;
            if (exchange_api()->from_object(tensor, &t) != 0) throw PythonError();
            expect(t.device.type == kDevice, kElsewhereText);
            device = t.device.id;
            data = static_cast<char*>(t.data) + t.byte_offset;
            rank = t.ndim, dtype = t.dtype, size = t.shape, stride = t.strides;
        } else {
            by_attributes(tensor);
        }
        expect(rank <= kMaxRank, "a tensor has more than 16 dimensions");
        expect(data || elements() == 0, "a tensor has no storage");
    }
    View(const View&) = delete;  // size and stride may point into the view
    View& operator=(const View&) = delete;

    int64_t elements() const {
        int64_t n = 1;
        for (int d = 0; d < rank; ++d) n *= size[d];
        return n;
    }
    bool contiguous() const {
        int64_t expected = 1;
        for (int d = rank; d-- > 0; expected *= size[d])
            if (size[d] != 1 && stride[d] != expected) return elements() == 0;
        return true;
    }
    bool is(int code, int bits) const { return dtype.code == code && dtype.bits == bits; }
    Type type() const {
        if (is(dlpack::kFloat, 32)) return Type::f32;
        if (is(dlpack::kFloat, 64)) return Type::f64;
        if (is(dlpack::kBfloat, 16)) return Type::bf16;
        if (is(dlpack::kFloat, 16)) return Type::f16;
        throw std::invalid_argument("a tensor is not float32, float64, bfloat16 or float16");
    }

private:
    std::array<int64_t, 2 * kMaxRank> own_;

    static int64_t integer(PyObject* value) {
        if (!value) throw PythonError();
        const int64_t n = PyLong_AsLongLong(value);
        Py_DECREF(value);
        if (n == -1 && PyErr_Occurred()) throw PythonError();
        return n;
    }
    void by_attributes(PyObject* tensor) {
        const Reference on(PyObject_GetAttrString(tensor, "device"));
        const Reference kind(PyObject_GetAttrString(on.get(), "type"));
        expect(std::string(PyUnicode_AsUTF8(kind.get())) == (kDevice == 1 ? "cpu" : "cuda"), kElsewhereText);
        const Reference index(PyObject_GetAttrString(on.get(), "index"));
        device = index.get() == Py_None ? 0 : static_cast<int>(PyLong_AsLong(index.get()));
        data = reinterpret_cast<void*>(integer(PyObject_CallMethod(tensor, "data_ptr", nullptr)));
        rank = static_cast<int>(integer(PyObject_CallMethod(tensor, "dim", nullptr)));
        for (int d = 0; d < rank && d < kMaxRank; ++d) {
            own_[d] = integer(PyObject_CallMethod(tensor, "size", "i", d));
            own_[kMaxRank + d] = integer(PyObject_CallMethod(tensor, "stride", "i", d));
        }
        size = own_.data(), stride = own_.data() + kMaxRank;
        const Reference type(PyObject_GetAttrString(tensor, "dtype"));
        const Reference name(PyObject_Str(type.get()));
        const std::string title = PyUnicode_AsUTF8(name.get());
        if (title == "torch.float32") dtype = {dlpack::kFloat, 32, 1};
        else if (title == "torch.float64") dtype = {dlpack::kFloat, 64, 1};
        else if (title == "torch.bfloat16") dtype = {dlpack::kBfloat, 16, 1};
        else if (title == "torch.float16") dtype = {dlpack::kFloat, 16, 1};
        else if (title == "torch.int64") dtype = {dlpack::kInt, 64, 1};
        else throw std::invalid_argument("a tensor is of type " + title);
    }
};

// A function of the module with positional arguments only, the cheapest call in Python. C++ exceptions
// become Python exceptions.
template <PyObject* (*f)(PyObject* const* args, Py_ssize_t count)>
PyObject* method(PyObject*, PyObject* const* args, Py_ssize_t count) {
    try {
        return f(args, count);
    } catch (const PythonError&) {
    } catch (const std::invalid_argument& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

}  // namespace mmfast
