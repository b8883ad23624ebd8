// gnfast._C_cuda: importing it registers the CUDA implementations of the operators that gnfast._C declares.

#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <string>

#include "interface.h"
#include "sign_bits/cuda.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["interface"] = GNFAST_INTERFACE;
  info["cuda"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  info["architectures"] = gnfast::cuda::compiled_architectures();
  info["torch"] = TORCH_VERSION;
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "gnfast's operators for CUDA.";
  m.def("build_info", &build_info, "How this library was built.");
}
