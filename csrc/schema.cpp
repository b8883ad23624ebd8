// The one place where gnfast's operators are declared. `cpu.cpp` of each folder registers the CPU implementations in
// the same shared object, `cuda_binding.cpp` the CUDA ones from a second, and gnfast/kernels the fake ones from Python.

#include <torch/library.h>

TORCH_LIBRARY(gnfast, m) {
  // The words follow the physical order of x, so a compiler that re-lays out an argument would silently permute them.
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag, at::Tag::needs_exact_strides};

  m.def("leaky_relu_pack(Tensor x, float negative_slope) -> (Tensor y, Tensor bits)", tags);
  m.def("leaky_relu_pack_(Tensor(a!) x, float negative_slope) -> Tensor", tags);
  m.def("leaky_relu_mask(Tensor t, Tensor bits, float negative_slope) -> Tensor", tags);
  // Returns nothing: functionalisation (torch.compile) refuses custom operators whose outputs alias their arguments.
  m.def("leaky_relu_mask_(Tensor(a!) t, Tensor bits, float negative_slope) -> ()", tags);

  // gnfast/kernels/head says what these compute.
  m.def(
      "head_normalize(Tensor f, Tensor g, Tensor? squares, ScalarType dtype, str kind, bool complement, float centre, "
      "float tau, float eps) -> (Tensor f_hat, Tensor partials)",
      tags);
  m.def(
      "head_pull(Tensor partials, Tensor upstream, Tensor x, Tensor g, float centre, bool wants_start, "
      "bool wants_grad_x, ScalarType dtype) -> (Tensor scale, Tensor? start, Tensor? grad_x)",
      tags);

  // gnfast/kernels/spectral says what these compute.
  m.def(
      "spectral_norm_iterate(Tensor[] weights, Tensor(a!)[] u, Tensor(b!)[] v, int[] dims, int[] iterations, "
      "float[] eps) -> (Tensor vectors, Tensor sigma)",
      tags);
  m.def("spectral_norm_scale(Tensor[] weights, Tensor sigma, float[] coeffs) -> Tensor[]", tags);
  m.def(
      "spectral_norm_backward(Tensor[] grads, Tensor[] weights, Tensor vectors, Tensor sigma, int[] dims, "
      "float[] coeffs) -> Tensor[]",
      tags);

  // gnfast/kernels/winograd says what these compute.
  m.def("winograd_conv2d(Tensor x, Tensor weight, Tensor? bias, int stride, int padding) -> Tensor", tags);
  m.def(
      "winograd_conv2d_input_grad(Tensor grad, Tensor weight, int stride, int padding, SymInt height, SymInt width) -> "
      "Tensor",
      tags);
  m.def("winograd_conv2d_weight_grad(Tensor grad, Tensor x, int kernel_size, int stride, int padding) -> Tensor", tags);
  // Adds it to the total.
  m.def("winograd_conv2d_weight_grad_(Tensor(a!) total, Tensor grad, Tensor x, int stride, int padding) -> ()", tags);

  // gnfast/kernels/norms says what these compute.
  m.def(
      "norms_second_rows(Tensor h, Tensor tangent, Tensor cotangent, Tensor? adjoint, Tensor? mean, Tensor rstd, "
      "Tensor? weight, int dims, bool wants_weight, bool wants_bias) -> (Tensor by_h, Tensor? by_weight, Tensor? "
      "by_bias)",
      tags);
  m.def("norms_project_rows(Tensor u, Tensor h, Tensor rstd, Tensor? weight, int dims) -> Tensor", tags);
  m.def(
      "norms_second_channels(Tensor h, Tensor tangent, Tensor cotangent, Tensor? adjoint, Tensor? mean, Tensor rstd, "
      "Tensor? weight, bool wants_weight, bool wants_bias) -> (Tensor by_h, Tensor? by_weight, Tensor? by_bias)",
      tags);

  // gnfast/kernels/curves says what these compute.
  m.def("curves_sloped(Tensor u, Tensor h, str kind, float[] constants) -> Tensor", tags);
  m.def("curves_sloped_onto_(Tensor(a!) addend, Tensor u, Tensor h, str kind, float[] constants) -> ()", tags);
  m.def("curves_bent(Tensor h, Tensor t, Tensor cotangent, str kind, float[] constants) -> Tensor", tags);
  m.def(
      "curves_both(Tensor h, Tensor t, Tensor cotangent, str kind, float[] constants) -> (Tensor sloped, "
      "Tensor bent)",
      tags);
}
