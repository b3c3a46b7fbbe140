#include "launcher/tensor_map.h"

#include <algorithm>
#include <string>

namespace autotune::launcher {

TensorMap TensorMaps::of(std::uint64_t address, std::uint64_t rows) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const Entry& entry : entries_)
    if (entry.address == address && entry.rows == rows) return entry.map;
  const Entry made{address, rows, encode(address, rows)};
  entries_[made_++ % entries_.size()] = made;
  return made.map;
}

TensorMap TensorMaps::encode(std::uint64_t address, std::uint64_t rows) const {
  const std::uint64_t sizes[2] = {boxes_.columns, rows};
  const std::uint64_t stride_bytes[1] = {boxes_.columns * 2};
  const unsigned box[2] = {64, static_cast<unsigned>(std::min<std::uint64_t>(boxes_.rows, rows))};
  const unsigned steps[2] = {1, 1};
  TensorMap map{};
  const Result result = driver_.cuTensorMapEncodeTiled(
      &map, boxes_.bf16 ? kBfloat16 : kFloat16, 2, reinterpret_cast<void*>(address), sizes, stride_bytes, box,
      steps, kNoInterleave, kSwizzle128, kPromote256, kFillZeros);
  if (result != kSuccess) {
    throw DriverError("cuTensorMapEncodeTiled: " + driver_.describe(result) + "; " + std::to_string(rows) +
                      " rows of " + std::to_string(boxes_.columns) + " 16-bit elements at address " +
                      std::to_string(address) + "; the address and a row's bytes must be multiples of 16");
  }
  return map;
}

}  // namespace autotune::launcher
