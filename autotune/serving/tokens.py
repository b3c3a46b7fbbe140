"""The numbers of tokens that vLLM runs its linears with, and the buckets that serve them.

Standard library only. Read from vLLM 0.20 to 0.33: `VllmConfig._set_cudagraph_sizes` and
`EngineArgs.get_batch_defaults`.
"""

from __future__ import annotations

from autotune.values.errors import LayerError
from autotune.values.layer import BUCKETS, bucket_of

MAX_NUM_SEQS = 1024
MAX_NUM_BATCHED_TOKENS = 8192
"""What `vllm serve` takes on a GPU like an H200 where nobody says otherwise."""

_LARGEST_GRAPH = 512


def graph_sizes(max_num_seqs: int, max_num_batched_tokens: int) -> tuple[int, ...]:
    """The numbers of tokens that have a CUDA graph; others are padded to the next of them."""
    largest = min(2 * max_num_seqs, _LARGEST_GRAPH, max_num_batched_tokens)
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)}
    if max_num_batched_tokens <= largest:
        sizes.add(max_num_batched_tokens)
    return tuple(sorted(size for size in sizes if size <= largest))


def served_buckets(
    max_num_seqs: int | None = None, max_num_batched_tokens: int | None = None
) -> tuple[int, ...]:
    """The buckets of all that an engine of these limits runs; None is what vLLM takes by itself.

    Those are the sizes of its graphs and, outside of graphs, every number of tokens above the largest of
    them: a chunk of prefill with some requests that decode, up to `max_num_batched_tokens`.

    Raises:
        LayerError: a limit is not positive, or fewer tokens than requests fit into a batch, as vLLM says too.
    """
    batched = MAX_NUM_BATCHED_TOKENS if max_num_batched_tokens is None else max_num_batched_tokens
    seqs = min(MAX_NUM_SEQS, batched) if max_num_seqs is None else max_num_seqs
    if seqs < 1 or batched < seqs:
        raise LayerError(
            f"max_num_seqs={seqs} and max_num_batched_tokens={batched} do not fit together;"
            " a batch has at least one token for each request"
        )
    sizes = graph_sizes(seqs, batched)
    captured = {bucket_of(size) for size in sizes}
    if batched == sizes[-1]:
        return tuple(sorted(captured))
    first, last = bucket_of(sizes[-1] + 1), bucket_of(batched)
    return tuple(bucket for bucket in BUCKETS if bucket in captured or first <= bucket <= last)
