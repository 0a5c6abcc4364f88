// What the extensions and the Python package agree on: raised with every change of a call between them, here and in
// mmfast/ops/extensions.py, which compares the two.
#pragma once

namespace mmfast {
constexpr int kInterface = 11;
}
