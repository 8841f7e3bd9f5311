// A device for PyTorch that is the processor in disguise: memory and operations are the processor's, but its tensors say
// that they are elsewhere. An operation on tensors of two devices is refused, as CUDA refuses it,
// and each reading of values by the host is counted: that is where a program waits for a real device.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/GeneratorForPrivateuseone.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/zeros_like.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>

namespace {

constexpr auto kind = c10::DeviceType::PrivateUse1;
std::atomic<int64_t> readings{0};

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* p = bytes ? std::malloc(bytes) : nullptr;
    return {p, p, &std::free, c10::Device(kind, 0)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Memory memory;
REGISTER_ALLOCATOR(kind, &memory);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kind; }
  c10::Device exchangeDevice(c10::Device) const override { return {kind, 0}; }
  c10::Device getDevice() const override { return {kind, 0}; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device d) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, d); }
  c10::Stream exchangeStream(c10::Stream s) const noexcept override { return s; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto fresh = memory.allocate(bytes);
    if (storage.nbytes()) std::memcpy(fresh.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(fresh));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

// the same numbers as a tensor of the host's
at::Tensor host(const at::Tensor& t) {
  if (!t.device().is_privateuseone()) return t;
  return at::from_blob(const_cast<void*>(t.const_data_ptr()), t.sizes(), t.strides(), t.options().device(at::kCPU));
}

at::Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device>,
    std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(
      size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      size, stride, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  readings += to.device().is_cpu();
  at::Tensor target = host(to);
  target.copy_(host(from));
  return to;
}

at::Tensor& copy_(at::Tensor& to, const at::Tensor& from, bool waits) {
  copy_from(from, to, waits);
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  host(to).copy_(host(from));
  return to;
}

at::Scalar local_scalar(const at::Tensor& t) {
  ++readings;
  return at::_local_scalar_dense(host(t));
}

bool equal(const at::Tensor& a, const at::Tensor& b) {
  ++readings;
  return at::equal(host(a), host(b));
}

at::Tensor nonzero(const at::Tensor& t) {
  ++readings;
  return at::nonzero(host(t)).to(t.device());
}

at::Tensor there(const at::Tensor& t) {
  return t.defined() ? t.to(c10::Device(kind, 0)) : t;
}

at::Tensor convolution(
    const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef rest, int64_t groups) {
  std::optional<at::Tensor> bias = b && b->defined() ? std::optional(host(*b)) : std::nullopt;
  return there(at::convolution(host(x), host(w), bias, stride, padding, dilation, transposed, rest, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& g, const at::Tensor& x, const at::Tensor& w, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool transposed, at::IntArrayRef rest, int64_t groups, std::array<bool, 3> wanted) {
  const int64_t outputs = g.size(1);
  auto [a, b, c] = at::convolution_backward(
      host(g), host(x), host(w), at::IntArrayRef(outputs), stride, padding, dilation, transposed, rest, groups, wanted);
  return {there(a), there(b), there(c)};
}

// what recurrent layers run through on devices: gates that were activated are kept for the backward pass
std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(
    const at::Tensor& input, const at::Tensor& hidden, const at::Tensor& cx, const std::optional<at::Tensor>& b,
    const std::optional<at::Tensor>& c) {
  at::Tensor gates = input + hidden;
  if (b && b->defined()) gates = gates + *b + *c;
  auto part = gates.chunk(4, 1);
  at::Tensor i = part[0].sigmoid(), f = part[1].sigmoid(), g = part[2].tanh(), o = part[3].sigmoid();
  at::Tensor cy = f * cx + i * g;
  return {o * cy.tanh(), cy, at::cat({i, f, g, o}, 1)};
}

std::tuple<at::Tensor, at::Tensor> gru_cell(
    const at::Tensor& input, const at::Tensor& hidden, const at::Tensor& hx, const std::optional<at::Tensor>& b,
    const std::optional<at::Tensor>& c) {
  auto x = (b && b->defined() ? input + *b : input).chunk(3, 1);
  auto h = (c && c->defined() ? hidden + *c : hidden).chunk(3, 1);
  at::Tensor r = (x[0] + h[0]).sigmoid(), z = (x[1] + h[1]).sigmoid(), n = (x[2] + r * h[2]).tanh();
  return {n + z * (hx - n), at::cat({r, z, n, hx, h[2]}, 1)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell_backward(
    const std::optional<at::Tensor>& gy, const std::optional<at::Tensor>& gc, const at::Tensor& cx,
    const at::Tensor& cy, const at::Tensor& workspace, bool biased) {
  auto part = workspace.chunk(4, 1);
  const at::Tensor &i = part[0], &f = part[1], &g = part[2], &o = part[3], t = cy.tanh();
  at::Tensor y = gy && gy->defined() ? *gy : at::zeros_like(cy), c = y * o * (1 - t * t);
  if (gc && gc->defined()) c = c + *gc;
  at::Tensor gates = at::cat({c * g * i * (1 - i), c * cx * f * (1 - f), c * i * (1 - g * g), y * t * o * (1 - o)}, 1);
  return {gates, c * f, biased ? gates.sum(0) : at::Tensor()};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> gru_cell_backward(
    const at::Tensor& gy, const at::Tensor& workspace, bool biased) {
  auto part = workspace.chunk(5, 1);
  const at::Tensor &r = part[0], &z = part[1], &n = part[2], &hx = part[3], &h = part[4];
  at::Tensor gz = gy * (hx - n) * z * (1 - z), gn = gy * (1 - z) * (1 - n * n), gr = gn * h * r * (1 - r);
  at::Tensor input = at::cat({gr, gz, gn}, 1), hidden = at::cat({gr, gz, gn * r}, 1);
  if (!biased) return {input, hidden, gy * z, at::Tensor(), at::Tensor()};
  return {input, hidden, gy * z, input.sum(0), hidden.sum(0)};
}

// every other operation
void anywhere(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  // indices may be the host's, and so may numbers in disguise
  const auto& name = op.schema().name();
  bool indexes = name.find("index") != std::string::npos;
  auto arguments = torch::jit::last(*stack, op.schema().arguments().size());
  auto check = [&](const at::Tensor& t) {
    TORCH_CHECK(
        !t.defined() || t.device().is_privateuseone() || t.dim() == 0 || indexes,
        name, ": all tensors must be on one device, found one on ", t.device(), " of shape ", t.sizes());
  };
  for (const auto& a : arguments) {
    if (a.isTensor()) check(a.toTensor());
    else if (a.isTensorList()) for (const at::Tensor& t : a.toTensorList()) check(t);
  }
  int64_t before = readings;  // its own copies to the host are no reading
  at::native::cpu_fallback(op, stack);
  readings = before;
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("resize_", at::native::resize_);
  m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  m.impl("set_.source_Storage", static_cast<at::Tensor& (*)(at::Tensor&, at::Storage)>(at::native::set_));
  m.impl("set_.source_Tensor", at::native::set_tensor_);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("copy_", copy_);
  m.impl("_local_scalar_dense", local_scalar);
  m.impl("equal", equal);
  m.impl("nonzero", nonzero);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
  m.impl("_thnn_fused_lstm_cell", lstm_cell);
  m.impl("_thnn_fused_gru_cell", gru_cell);
  m.impl("_thnn_fused_lstm_cell_backward_impl", lstm_cell_backward);
  m.impl("_thnn_fused_gru_cell_backward", gru_cell_backward);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&anywhere>());
}

TORCH_LIBRARY(accelerator, m) {
  m.def("install", [] { at::RegisterPrivateUse1HooksInterface(new Hooks()); });
  m.def("readings", [] { return readings.load(); });
}
