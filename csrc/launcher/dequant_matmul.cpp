#include "launcher/dequant_matmul.h"

#include <iterator>

namespace autotune::launcher {

namespace {

constexpr std::uint64_t kElementBytes = 2;

}  // namespace

void DequantMatmul::run(const DequantOperands& operands, Stream stream) {
  const std::uint64_t weights = operands.workspace + DenseMatmul::kWorkspaceBytes;
  for (const Chunk& chunk : chunks_) {
    Launch launch = chunk.launch;
    launch.stream = stream;
    const std::uint64_t arguments[] = {
        operands.qweight, operands.scales, operands.zeros, weights, chunk.start, chunk.rows, n_, k_};
    function_.launch(launch, arguments, std::size(arguments));
    const std::uint64_t offset = chunk.start * kElementBytes;
    const std::uint64_t bias = operands.bias == 0 ? 0 : operands.bias + offset;
    matmul_.run(
        {operands.x, weights, bias, operands.out + offset, operands.workspace, operands.m, chunk.rows},
        stream);
  }
}

}  // namespace autotune::launcher
