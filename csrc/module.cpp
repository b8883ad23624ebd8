// gnfast._C: importing it registers the operators; the module itself only tells how it was built.

#include <ATen/Version.h>
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include <string>

#include "arena/arena.h"
#include "interface.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

py::dict build_info() {
  py::dict info;
  info["interface"] = GNFAST_INTERFACE;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["torch"] = TORCH_VERSION;
#ifdef GNFAST_X86_KERNELS
  info["x86_kernels"] = true;
#else
  info["x86_kernels"] = false;
#endif
#ifdef _OPENMP
  info["openmp"] = static_cast<long>(_OPENMP);
#else
  info["openmp"] = py::none();
#endif
#ifdef NDEBUG
  info["assertions"] = false;
#else
  info["assertions"] = true;
#endif
  info["cpu_capability"] = at::get_cpu_capability();
  return info;
}

py::dict arena_use() {
  const auto use = gnfast::cpu::arena_use();
  return py::dict("blocks"_a = use.blocks, "refused"_a = use.refused, "grown"_a = use.grown, "in_use"_a = use.in_use,
                  "held"_a = use.held);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.doc() = "gnfast's operators for the CPU.";
  m.def("build_info", &build_info, "How this library was built, and the instruction set it found at run time.");
  // gnfast/steps/memory.py says what these do.
  m.def("install_arena", &gnfast::cpu::install_arena);
  m.def("open_arena", &gnfast::cpu::open_arena);
  m.def("close_arena", &gnfast::cpu::close_arena);
  m.def("release_arena", &gnfast::cpu::release_arena);
  m.def("arena_use", &arena_use);
}
