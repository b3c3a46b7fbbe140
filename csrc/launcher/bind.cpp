#include "launcher/bind.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "launcher/dequant_matmul.h"
#include "launcher/driver.h"
#include "launcher/function.h"

namespace py = pybind11;

namespace autotune::launcher {

namespace {

Stream stream_of(std::uintptr_t handle) { return reinterpret_cast<Stream>(handle); }

py::list cuda_devices() {
  py::list devices;
  for (const DeviceInfo& info : driver().devices) {
    py::dict device;
    device["name"] = info.name;
    device["uuid"] = info.uuid;
    device["major"] = info.major;
    device["minor"] = info.minor;
    device["multiprocessors"] = info.multiprocessors;
    device["l2_bytes"] = info.l2_bytes;
    device["shared_bytes"] = info.shared_bytes;
    device["memory_bytes"] = info.memory_bytes;
    devices.append(device);
  }
  return devices;
}

std::optional<std::string> cuda_driver_version() {
  const std::string& version = driver().version;
  return version.empty() ? std::nullopt : std::make_optional(version);
}

std::optional<std::uint64_t> cuda_capture_id(std::uintptr_t stream) {
  // The default stream cannot be captured, and asking about it fails while another stream is.
  if (stream == 0) return std::nullopt;
  const Driver& driver = available_driver();
  CaptureStatus status = kNotCapturing;
  std::uint64_t id = 0;
  driver.check(driver.cuStreamGetCaptureInfo(stream_of(stream), &status, &id), "cuStreamGetCaptureInfo");
  return status == kCapturing ? std::make_optional(id) : std::nullopt;
}

using BoxesArgument = std::optional<std::tuple<std::uint64_t, unsigned, bool>>;

std::unique_ptr<CudaFunction> load(const py::bytes& cubin, std::string name, int device,
                                   const BoxesArgument& argument) {
  const std::string_view bytes = cubin;
  std::optional<Boxes> boxes;
  if (argument) {
    const auto [columns, rows, bf16] = *argument;
    boxes = Boxes{columns, rows, bf16};
  }
  const py::gil_scoped_release release;
  return std::make_unique<CudaFunction>(bytes, std::move(name), device, boxes);
}

void launch(CudaFunction& function, const std::array<unsigned, 3>& grid, unsigned block,
            unsigned shared_bytes, std::uintptr_t stream, const py::object& arguments, bool programmatic) {
  const py::object sequence =
      py::reinterpret_steal<py::object>(PySequence_Fast(arguments.ptr(), "arguments is not a sequence"));
  if (!sequence) throw py::error_already_set();
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence.ptr());
  std::uint64_t values[CudaFunction::kMaxArguments];
  const Py_ssize_t kept = std::min<Py_ssize_t>(count, CudaFunction::kMaxArguments);
  for (Py_ssize_t i = 0; i < kept; ++i) {
    values[i] = PyLong_AsUnsignedLongLongMask(PySequence_Fast_GET_ITEM(sequence.ptr(), i));
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  }
  // A full queue makes the driver wait, for kernels that may need another Python thread to go on.
  const py::gil_scoped_release release;
  function.launch({grid, block, shared_bytes, stream_of(stream), programmatic}, values,
                  static_cast<int>(count));
}

using ChunkArgument =
    std::tuple<std::array<unsigned, 3>, unsigned, unsigned, bool, std::uint64_t, std::uint64_t>;

std::unique_ptr<DequantMatmul> load_dequant(const py::bytes& cubin, std::string name, int device,
                                            std::uint64_t n, std::uint64_t k, bool bf16,
                                            const std::vector<ChunkArgument>& arguments) {
  std::vector<Chunk> chunks;
  for (const auto& [grid, block, shared_bytes, programmatic, start, rows] : arguments)
    chunks.push_back({{grid, block, shared_bytes, nullptr, programmatic}, start, rows});
  const std::string_view bytes = cubin;
  const py::gil_scoped_release release;
  return std::make_unique<DequantMatmul>(bytes, std::move(name), device, n, k, bf16, std::move(chunks));
}

void run_dequant(DequantMatmul& matmul, std::uint64_t x, std::uint64_t qweight, std::uint64_t scales,
                 std::uint64_t zeros, std::uint64_t bias, std::uint64_t out, std::uint64_t workspace,
                 std::uint64_t m, std::uintptr_t stream) {
  const py::gil_scoped_release release;
  matmul.run({x, qweight, scales, zeros, bias, out, workspace, m}, stream_of(stream));
}

void raise_launch_error(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const DriverError& error) {
    const py::object launch_error = py::module_::import("autotune.values.errors").attr("LaunchError");
    PyErr_SetString(launch_error.ptr(), error.what());
  }
}

}  // namespace

void bind(py::module_& module) {
  py::register_local_exception_translator(raise_launch_error);

  module.def("cuda_devices", cuda_devices,
             "Name and numbers of every GPU that the driver shows, in its order; empty without a driver.");
  module.def(
      "cuda_unavailable_reason", [] { return driver().unavailable; },
      "Why there are no devices, in a phrase; empty when there are.");
  module.def("cuda_driver_version", cuda_driver_version,
             "The newest CUDA that the driver runs, as '13.0'; None without a driver.");
  module.def(
      "cuda_capture_id", cuda_capture_id, py::arg("stream"),
      "Id, unique in the process, of the graph capture that the stream is in; None when it is in none.");

  py::class_<CudaFunction>(
      module, "CudaFunction",
      "A kernel of a cubin, loaded into the device's primary context (torch's own).\n\n"
      "All parameters of the kernel have 8 bytes. With boxes=(columns, rows, bf16) the first is a\n"
      "CUtensorMap instead: the address and the rows of a matrix of 16-bit elements, which are the\n"
      "first two arguments of a launch, become its map in boxes of 64 columns and `rows` rows, or as\n"
      "many as the matrix has where these are fewer. Making one loads the module, which is slow but\n"
      "does not end a graph capture. Equal cubins share a module, which stays loaded for the life of\n"
      "the process. Raises LaunchError.")
      .def(py::init(&load), py::arg("cubin"), py::arg("name"), py::arg("device"),
           py::arg("boxes") = py::none())
      .def("launch", &launch, py::arg("grid"), py::arg("block"), py::arg("shared_bytes"), py::arg("stream"),
           py::arg("arguments"), py::arg("programmatic") = false,
           "Enqueue the kernel on the stream: grid is (x, y, z) blocks of `block` threads with "
           "`shared_bytes`\n"
           "of dynamic shared memory; arguments are pointers and integers. `programmatic` lets it start\n"
           "before the kernel ahead of it has ended. Allocates nothing, waits for nothing, can be captured.\n"
           "Raises LaunchError.")
      .def_property_readonly("registers", &CudaFunction::registers, "Registers of a thread.")
      .def_property_readonly("local_bytes", &CudaFunction::local_bytes, "Local memory of a thread.")
      .def_property_readonly("static_shared_bytes", &CudaFunction::static_shared_bytes)
      .def_property_readonly("max_threads", &CudaFunction::max_threads, "The largest block that can run.");

  py::class_<DequantMatmul>(
      module, "DequantMatmul",
      "out[m, n] = x[m, k] @ dequant(w[n, k]).T + bias[n], in fp16 or bf16: chunk by chunk a kernel of a\n"
      "cubin that dequantises and a product by cuBLASLt. A chunk is how the kernel is launched (grid,\n"
      "block, shared_bytes, programmatic), its first row of w and its rows. Raises LaunchError.")
      .def(py::init(&load_dequant), py::arg("cubin"), py::arg("name"), py::arg("device"), py::arg("n"),
           py::arg("k"), py::arg("bf16"), py::arg("chunks"))
      .def("run", &run_dequant, py::arg("x"), py::arg("qweight"), py::arg("scales"), py::arg("zeros"),
           py::arg("bias"), py::arg("out"), py::arg("workspace"), py::arg("m"), py::arg("stream"),
           "Enqueue all on the stream. All but m are device addresses, zeros and bias may be 0; workspace\n"
           "has MATMUL_BYTES and, behind them, room for the largest chunk. Allocates nothing on the device,\n"
           "waits for nothing, can be captured. Raises LaunchError.")
      .def_readonly_static("MATMUL_BYTES", &DenseMatmul::kWorkspaceBytes);
}

}  // namespace autotune::launcher
