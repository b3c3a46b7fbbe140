"""A scheme and its one text form, and how a layer spells it."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.values.errors import LayerError
from autotune.values.layer import Layer
from autotune.values.scheme import DTYPES, GROUP_SIZES, Scheme

SCHEMES = st.builds(
    Scheme, group_size=st.sampled_from((*GROUP_SIZES, -1)), dtype=st.sampled_from(DTYPES), zeros=st.booleans()
)


@given(SCHEMES)
def test_a_text_names_its_scheme(scheme: Scheme) -> None:
    assert Scheme.parse(str(scheme)) == scheme


@given(SCHEMES, SCHEMES)
def test_no_two_schemes_have_one_text(one: Scheme, other: Scheme) -> None:
    assert (str(one) == str(other)) == (one == other)


@given(st.from_regex(r"int4-(g[0-9]{1,3}|channel)-(zp|sym)-(fp16|bf16|fp32)", fullmatch=True))
def test_a_text_that_reads_is_the_only_one_of_its_scheme(text: str) -> None:
    try:
        scheme = Scheme.parse(text)
    except LayerError:
        return
    assert str(scheme) == text


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("int4-g128-zp-fp16", Scheme()),
        ("int4-g32-sym-bf16", Scheme("int4", 32, "bf16", zeros=False)),
        ("int4-channel-zp-fp32", Scheme("int4", -1, "fp32")),
    ],
)
def test_texts(text: str, scheme: Scheme) -> None:
    assert (Scheme.parse(text), str(scheme)) == (scheme, text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "scheme '' does not read as int4-g128-zp-fp16"),
        ("int4-g128-zp", "does not read as"),
        ("int4-g128-zp-fp16 ", "does not read as"),
        ("int4-g0128-zp-fp16", "does not read as"),
        ("int4-g48-zp-fp16", "group_size=48 is not one of 32, 64, 128, or -1"),
        ("int8-g128-zp-fp16", "weight='int8' is not one of int4"),
        ("int4-g128-zp-fp8", "dtype='fp8' is not one of fp16, bf16, fp32"),
        ("int4-g128-zp-fp16-fp8", "does not read as"),
    ],
)
def test_what_is_no_scheme_is_an_error(text: str, words: str) -> None:
    with pytest.raises(LayerError, match=words):
        Scheme.parse(text)


def test_activations_are_not_rounded_yet() -> None:
    with pytest.raises(LayerError, match="activations='fp8' is not one of None"):
        Scheme(activations="fp8")


def test_a_layer_has_two_spellings() -> None:
    scheme = Scheme("int4", 64, "bf16", zeros=False)
    layer = Layer(128, 256, scheme)
    assert layer == Layer(n=128, k=256, group_size=64, dtype="bf16", zero_point=False)
    assert (layer.group_size, layer.dtype, layer.zero_point, layer.groups) == (64, "bf16", False, 4)
    assert replace(layer, dtype="fp16") == Layer(128, 256, replace(scheme, dtype="fp16"))
    assert pickle.loads(pickle.dumps(layer)) == layer
    assert Layer(128, 256) == Layer(128, 256, Scheme())


def test_one_group_of_all_k_is_one_scheme_for_every_k() -> None:
    layers = [Layer(64, k, group_size=size) for k in (64, 128, 11008) for size in (-1, k)]
    assert {layer.scheme for layer in layers} == {Scheme(group_size=-1)}
    assert [layer.group_size for layer in layers] == [64, 64, 128, 128, 11008, 11008]
    assert {layer.groups for layer in layers} == {1}
    assert Layer(64, 128) == Layer(64, 128, Scheme(group_size=-1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Layer(64, 128, 64), "scheme=64 is not a Scheme"),
        (lambda: Layer(64, 96, Scheme(group_size=64)), "k=96 is not a multiple of group_size=64"),
        (lambda: Layer(64, 12, group_size=-1), "k=12 is not a positive multiple of 8"),
        (lambda: Layer(64, 128, group_size=0), "group_size=0 is not one of"),
    ],
)
def test_what_is_no_layer_is_an_error(make, words: str) -> None:
    with pytest.raises(LayerError, match=words):
        make()
