"""The numbers of tokens that vLLM runs, against its own rules written out."""

from __future__ import annotations

import pytest

from autotune.serving.tokens import graph_sizes, served_buckets
from autotune.values.errors import LayerError
from autotune.values.layer import BUCKETS, bucket_of

TO_512 = (1, 2, 4, *range(8, 249, 8), *range(256, 513, 16))


@pytest.mark.parametrize(
    ("seqs", "batched", "sizes"),
    [
        (1024, 8192, TO_512),
        (256, 2048, TO_512),
        (128, 2048, (1, 2, 4, *range(8, 249, 8), 256)),
        (16, 8192, (1, 2, 4, 8, 16, 24, 32)),
        (3, 8192, (1, 2, 4)),
        (1, 8192, (1, 2)),
        (6, 6, (1, 2, 4, 6)),
        (100, 100, (1, 2, 4, *range(8, 97, 8), 100)),
        (1, 1, (1,)),
    ],
)
def test_graph_sizes(seqs: int, batched: int, sizes: tuple[int, ...]) -> None:
    assert graph_sizes(seqs, batched) == sizes


@pytest.mark.parametrize(
    ("seqs", "batched"),
    [(1024, 8192), (16, 8192), (5, 300), (6, 6), (100, 100), (1, 1), (1, 4), (512, 512), (400, 600)],
)
def test_every_number_of_tokens_has_its_bucket_and_no_other_is_there(seqs: int, batched: int) -> None:
    sizes = graph_sizes(seqs, batched)

    def runs(tokens: int) -> int:
        return next((size for size in sizes if size >= tokens), tokens)

    assert set(served_buckets(seqs, batched)) == {bucket_of(runs(tokens)) for tokens in range(1, batched + 1)}


def test_what_vllm_takes_by_itself() -> None:
    assert served_buckets() == BUCKETS
    assert served_buckets(max_num_batched_tokens=48) == (1, 2, 4, 8, 16, 24, 32, 40, 48)


@pytest.mark.parametrize(("seqs", "batched"), [(0, 8192), (64, 32), (None, 0)])
def test_limits_that_do_not_fit_are_one_line(seqs: int | None, batched: int) -> None:
    with pytest.raises(LayerError, match="do not fit together") as caught:
        served_buckets(seqs, batched)
    assert f"max_num_batched_tokens={batched}" in str(caught.value)
