"""Bundles: the same bytes every time, read back whole, and every bad file one clear error."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from store_samples import (
    A100,
    ENVIRONMENT,
    EVIDENCE,
    H200,
    binary,
    config,
    evident_trials,
    record,
)

from autotune.bundles import format as format_
from autotune.bundles.format import (
    Bundle,
    BundleContents,
    Signed,
    decode,
    encode,
    read_bundle,
    signature_line,
)
from autotune.bundles.keys import PublicKey, SigningKey, new_key, signing_key
from autotune.bundles.trust import create, sign, signer
from autotune.store.entries import Entry, TrialEntry
from autotune.values.errors import BundleError
from autotune.values.layer import Layer

NEWER = replace(ENVIRONMENT, driver="CUDA 13.1")
FIRST = replace(record(), evidence=EVIDENCE)
ENTRIES = [
    Entry(FIRST, H200, ENVIRONMENT, binary("unit a", b"\x7fELF a")),
    Entry(record(m=16, best=config(16)), H200, NEWER, binary("unit b", b"\x7fELF b")),
    Entry(record(layer=Layer(1024, 4096)), H200, ENVIRONMENT),
    Entry(record(device=A100), A100, ENVIRONMENT, binary("unit a", b"\x7fELF a")),
]
ATTEMPTS = [TrialEntry(trial, H200, ENVIRONMENT) for trial in evident_trials(FIRST)]
CONTENTS = BundleContents(ENTRIES, ATTEMPTS)


@pytest.fixture
def key(tmp_path, monkeypatch) -> SigningKey:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    new_key("release")
    return signing_key("release")


def lines(content: bytes) -> list[bytes]:
    return content.splitlines(keepends=True)


def with_body(content: bytes, *changed: bytes) -> bytes:
    """A content of these lines whose first line tells their size, as whoever edits it would have it."""
    header = json.loads(lines(content)[0])
    header["bytes"] = len(b"".join(changed))
    return json.dumps(header).encode() + b"\n" + b"".join(changed)


def refused(data: bytes) -> str:
    with pytest.raises(BundleError) as caught:
        decode(data, "it.bundle")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_goes_in_comes_out():
    bundle = decode(encode("mine", CONTENTS), "mine")
    assert bundle.name == "mine"
    assert sorted(bundle.contents.entries, key=str) == sorted(ENTRIES, key=str)
    assert sorted(bundle.contents.attempts, key=str) == sorted(ATTEMPTS, key=str)


def test_order_changes_no_byte_and_content_changes_the_name():
    turned = BundleContents(ENTRIES[::-1], ATTEMPTS[::-1])
    assert encode("mine", turned) == encode("mine", CONTENTS)
    one, other = (decode(encode("mine", BundleContents(part)), "it") for part in (ENTRIES, ENTRIES[1:]))
    assert one.id != other.id
    assert one.id.startswith("mine@")


def test_a_file_is_named_by_its_content_and_never_overwritten(tmp_path, key):
    bundle, path = create("mine", CONTENTS, tmp_path, key)
    assert path.name == f"mine-{bundle.digest[:12]}.bundle"
    assert read_bundle(path) == bundle
    before = path.read_bytes()
    for again, remedy in ((None, "use it"), (key, "move it away to have one that release signs")):
        with pytest.raises(BundleError, match=f"is there already, with these very records; {remedy}"):
            create("mine", CONTENTS, tmp_path, again)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == [path.name]


def test_the_signature_is_one_of_ed25519(key):
    content = encode("mine", CONTENTS)
    signed = sign(content, key)
    digest = decode(content, "it").digest
    Ed25519PublicKey.from_public_bytes(key.public.raw).verify(
        signed.signature, f"autotune bundle {digest} {signed.at} None".encode()
    )


def test_a_signature_of_a_trusted_key_counts(key):
    content = encode("mine", CONTENTS)
    bundle = decode(content + signature_line(sign(content, key)), "it")
    assert signer(bundle, [key.public]) == key.public
    assert bundle.id == decode(content, "it").id


def signed_bundle(key: SigningKey, valid_s: float | None = None) -> Bundle:
    content = encode("mine", CONTENTS)
    return decode(content + signature_line(sign(content, key, valid_s)), "it")


def test_other_signatures_do_not(key):
    bundle = signed_bundle(key, valid_s=3600)
    at = bundle.signatures[0].at
    stranger = PublicKey(bytes(32), "stranger")
    other = decode(encode("mine", BundleContents(ENTRIES[1:])), "it")
    for changed, keys, now, why in (
        (replace(bundle, signatures=()), [key.public], at, "no signature"),
        (bundle, [stranger], at, "nobody here trusts its key"),
        (bundle, [], at, "nobody here trusts its key"),
        (replace(other, signatures=bundle.signatures), [key.public], at, "it was edited"),
        (bundle, [key.public], at + 3601, "expired"),
        (bundle, [key.public], at - 90_000, "a clock is wrong"),
    ):
        with pytest.raises(BundleError, match=why):
            signer(changed, keys, now)
    longer = replace(bundle.signatures[0], until=None)
    with pytest.raises(BundleError, match="it was edited"):
        signer(replace(bundle, signatures=(longer,)), [key.public], at)


def test_every_cut_is_found(key):
    content = encode("mine", CONTENTS)
    whole = content + signature_line(sign(content, key))
    for size in range(0, len(content), 97):
        assert "cut off" in refused(whole[:size]) or "no bundle" in refused(whole[:size])
    assert "a signature in it does not read" in refused(whole[:-9])


def test_bad_files():
    content = encode("mine", CONTENTS)
    first, *body = lines(content)
    entry = next(line for line in body if b'"median_us"' in line)
    cubin = next(line for line in body if b'"cubin"' in line)
    header = json.loads(first)

    def begins(**changes: object) -> bytes:
        return json.dumps(header | changes).encode() + b"\n" + b"".join(body)

    def edited(old: bytes, new: bytes) -> bytes:
        return with_body(content, *(line.replace(old, new) for line in body))

    for data, why in (
        (b"", "no bundle"),
        (b"\x00" * 100_000, "no bundle"),
        (b"[" * 50_000 + b"\n", "no bundle"),
        (begins(autotune_bundle=2), "made by a newer autotune"),
        (begins(schema="9999"), "made by a newer autotune"),
        (begins(bytes=-1), "first line does not read"),
        (begins(bytes=1 << 40), "first line does not read"),
        (begins(name="../../etc/passwd"), "first line does not read"),
        (begins(name=None), "first line does not read"),
        (begins(records=1), "tells of"),
        (content + b"x" * 100_000, "behind its end"),
        (content + signature_line(Signed(b"", b"", 10**30, None)), "a signature in it does not read"),
        (content + signature_line(Signed(b"", b"", 0, 10**30)), "a signature in it does not read"),
        (content + signature_line(Signed(b"", b"", -1, None)), "a signature in it does not read"),
        (with_body(content, *body, entry), "does not read"),
        (with_body(content, *body, cubin), "is there twice"),
        (with_body(content, body[0], entry, entry), "is there twice"),
        (with_body(content, entry), "does not read"),
        (with_body(content, *(line for line in body if line != cubin)), "is missing"),
        (with_body(content, *body, b"[" * 100_000 + b"\n"), "does not read"),
        (edited(b"f0VM", b"f0VN"), "not the one that was stored"),
        (edited(b'"median_us":5.25', b'"median_us":NaN'), "median_us"),
        (edited(b'"m":16', b'"m":-1'), "does not read"),
    ):
        assert why in refused(data), (why, data[:200])


def test_any_value_in_the_place_of_another_reads_or_is_one_clear_error():
    content = encode("mine", CONTENTS)
    first, _, _ = content.partition(b"\n")
    others = (b"null", b"1e999", b"-1", b"10" * 20, b"[]", b"{}", b'"\\u0000"', b'"\\ud800"', b"true", b'""')
    read = refused = changes = 0
    for value in re.finditer(rb'(?<=:)("[^"]*"|-?[0-9][0-9.e+-]*|true|false|null)', content):
        for other in others:
            changes += 1
            changed = content[: value.start()] + other + content[value.end() :]
            if value.start() > len(first):
                changed = with_body(changed, changed.partition(b"\n")[2])
            try:
                read += isinstance(decode(changed, "it.bundle").name, str)
            except BundleError:  # and nothing else
                refused += 1
    assert 0 < read < refused
    assert read + refused == changes


def test_a_large_file_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "large.bundle"
    with path.open("wb") as file:
        file.truncate(format_.LARGEST_BYTES + 1)
    with pytest.raises(BundleError, match="268435456 at most"):
        read_bundle(path)
    with pytest.raises(BundleError, match="is no file"):
        read_bundle(tmp_path)
    monkeypatch.setattr(format_, "LARGEST_BYTES", 1000)
    with pytest.raises(BundleError, match="split it"):
        encode("mine", CONTENTS)


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "a" * 65, "new\nline"])
def test_a_name_is_no_path(name):
    with pytest.raises(BundleError, match="no name of a bundle"):
        encode(name, CONTENTS)
