// Which operators and functions the libraries have: a digest of their declarations, in schema.cpp and module.cpp. It is
// INTERFACE in gnfast/kernels/build_info.py as well; tests/test_build.py says what to write in both.

#pragma once

#define GNFAST_INTERFACE "ecff0229a3b4"
