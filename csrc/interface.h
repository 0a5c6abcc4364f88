// The version of the interface between the extensions and the Python package. Increment it here and in
// mmfast/ops/extensions.py, which compares the two, when a call between them changes.
#pragma once

namespace mmfast {
constexpr int kInterface = 11;
}
