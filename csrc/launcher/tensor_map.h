#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>

#include "launcher/driver.h"

namespace autotune::launcher {

// A row-major matrix of 16-bit elements as the copy engine fetches it: in boxes of 64 columns and so many
// rows, or all that the matrix has where that is fewer.
struct Boxes {
  std::uint64_t columns;
  unsigned rows;
  bool bf16;
};

// The tensor maps of the last few matrices, because activations have the same few addresses again and again.
class TensorMaps {
 public:
  TensorMaps(const Driver& driver, const Boxes& boxes) : driver_(driver), boxes_(boxes) {}

  // That of the matrix with these rows at this address. Throws DriverError.
  TensorMap of(std::uint64_t address, std::uint64_t rows);

 private:
  struct Entry {
    std::uint64_t address = 0;
    std::uint64_t rows = std::numeric_limits<std::uint64_t>::max();  // no matrix's
    TensorMap map{};
  };

  TensorMap encode(std::uint64_t address, std::uint64_t rows) const;

  const Driver& driver_;
  const Boxes boxes_;
  std::mutex mutex_;
  std::array<Entry, 4> entries_;
  std::size_t made_ = 0;
};

}  // namespace autotune::launcher
