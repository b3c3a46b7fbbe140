"""A file of 2,000 records: each layer's are found among all others, whatever else is in the file."""

from __future__ import annotations

import json
import random
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from lookup_world import make_small_world
from store_samples import ENVIRONMENT, H200, config, record, with_evidence

from autotune.cli import main
from autotune.records.exchange import write_text
from autotune.records.lookup import Lookup
from autotune.store.text import RecordFile, read_text
from autotune.values.layer import BUCKETS, Layer, Problem
from autotune.values.paths import shipped
from autotune.values.scheme import Scheme

SIZES = (1024, 2560, 4096, 5120, 10240, 12288, 28672)
LAYERS = [
    Layer(n, k, group_size=group_size, dtype=dtype, zero_point=zeros)
    for n, k, group_size, dtype, zeros in product(
        SIZES, (2560, 4096, 11008), (32, -1), ("bf16", "fp16"), (False, True)
    )
]
RECORDS = [
    with_evidence(record(m=m, layer=layer, best=config(tile_m=m))) for layer in LAYERS for m in BUCKETS
]

IN_ORDER = sorted(RECORDS, key=lambda each: each.problem)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "nvidia-h200.jsonl"
    write_text(RECORDS, ENVIRONMENT, path)
    return path


def bare(layer: Layer) -> list:
    return [replace(each, evidence=None) for each in RECORDS if each.problem.layer == layer]


def test_every_layer_is_found(whole):
    assert len(RECORDS) > 2000
    file = RecordFile(whole)
    assert (file.arch, file.environment) == (H200.arch, ENVIRONMENT)
    assert file.layers == set(LAYERS)
    for layer in LAYERS:
        assert file.records(layer) == bare(layer)
    assert file.records(LAYERS[40], evidence=True) == [
        each for each in RECORDS if each.problem.layer == LAYERS[40]
    ]
    assert file.bad == []


@pytest.mark.parametrize("n", [8, 4104, 1 << 20])
def test_a_layer_without_lines_has_no_records(whole, n):
    assert RecordFile(whole).records(Layer(n, 4096)) == []


def test_a_file_without_records(tmp_path, whole):
    path = tmp_path / "a.jsonl"
    path.write_bytes(whole.read_bytes().splitlines()[0])
    assert (RecordFile(path).records(LAYERS[0]), RecordFile(path).layers) == ([], set())


def test_what_is_wrong_elsewhere_is_not_looked_at(tmp_path, whole):
    header, *lines = whole.read_bytes().splitlines()
    mine = {index for index, each in enumerate(IN_ORDER) if each.problem.layer == LAYERS[40]}
    torn = [line if index in mine else line[: len(line) // 2] for index, line in enumerate(lines)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join((header, *torn)))
    file = RecordFile(path)
    assert (file.records(LAYERS[40]), file.bad) == (bare(LAYERS[40]), [])
    assert file.records(LAYERS[41]) == []
    assert len(file.bad) == len(BUCKETS)


DAMAGE = (b"", b"\xff\xfe", b"{", b"7", b"[" * 5000, b'{"n":4096', b" " * 300_000, b'{"n":1,"k":1}')


@pytest.mark.parametrize("seed", range(4))
def test_damaged_lines_anywhere_cost_nothing_but_themselves(tmp_path, whole, seed):
    chance = random.Random(seed)
    header, *lines = whole.read_bytes().splitlines()
    for _ in range(100):
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(DAMAGE))
    for _ in range(3):
        at = chance.randrange(len(lines))
        lines[at:at] = [b"?"] * 50
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join((header, *lines)) + b"\n")
    file = RecordFile(path)
    assert file.layers == set(LAYERS)
    for layer in chance.sample(LAYERS, 25):
        assert file.records(layer) == bare(layer)
    everything: list[str] = []
    assert len(read_text(path, bad=everything)[1]) == len(RECORDS)
    assert len(everything) == 250
    assert file.bad
    assert set(file.bad) <= set(everything)


def test_a_line_with_spaces_is_read(tmp_path, whole):
    header, *lines = whole.read_text().splitlines()
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join((header, *(json.dumps(json.loads(line)) for line in lines))))
    layer = LAYERS[3]
    with_spaces = RecordFile(path).records(layer)
    assert [each.problem for each in with_spaces] == [each.problem for each in bare(layer)]


def test_damage_without_an_end_hides_at_most_what_is_behind_it(tmp_path, whole):
    header, *lines = whole.read_bytes().splitlines()
    path = tmp_path / "a.jsonl"
    first, last = IN_ORDER[0].problem.layer, IN_ORDER[-1].problem.layer
    before = len(bare(first))
    path.write_bytes(b"\n".join((header, *lines[:before], *[b""] * 3_000_000, *lines[before:])))
    file = RecordFile(path)
    assert file.records(first) == bare(first)
    assert file.records(last) in ([], bare(last))  # damage may hide what is behind it, but change nothing


@pytest.fixture
def world(tmp_path, monkeypatch, whole) -> Path:
    make_small_world(tmp_path, monkeypatch)
    path = tmp_path / "shipped" / whole.name
    path.write_bytes(whole.read_bytes())
    return path


@pytest.mark.usefixtures("world")
def test_look_up_answers_from_them():
    found = Lookup(H200)
    for each in random.Random(0).sample(RECORDS, 100):
        answer = found.answer(each.problem)
        assert (answer.source, answer.record) == ("shipped", replace(each, evidence=None))


def test_damage_in_them_is_one_warning(world):
    header, *lines = world.read_bytes().splitlines()
    world.write_bytes(b"\n".join((header, *(line[:200] if b'"m":8,' in line else line for line in lines))))
    found = Lookup(H200)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answers = [found.answer(Problem(layer, 8)) for layer in LAYERS[:5]]
    assert [str(each.message).partition(" left out")[0] for each in caught] == [f"{world}: lines"]
    assert {answer.source for answer in answers} == {"default"}


def test_a_file_that_goes_away_is_one_warning(world):
    found = Lookup(H200)
    world.unlink()
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        answers = [found.answer(Problem(layer, 1)) for layer in LAYERS[:3]]
    assert {answer.source for answer in answers} == {"default"}
    assert len(caught) == 1


def test_doctor_says_when_lines_are_not_sorted(world, capsys, monkeypatch):
    monkeypatch.setattr("autotune.values.device.find_device", lambda _="auto": H200)
    header, *lines = world.read_bytes().splitlines()
    world.write_bytes(b"\n".join((header, *lines[::-1])))
    assert main(["doctor"]) == 1
    assert "its lines are not sorted" in capsys.readouterr().out


def test_what_the_package_ships_is_sorted():
    for path in shipped("db").glob("*.jsonl"):
        _, records = read_text(path)
        problems = [each.problem for each in records]
        assert problems == sorted(problems)
        file = RecordFile(path)
        found = [each for layer in sorted(file.layers) for each in file.records(layer)]
        assert found == [replace(each, evidence=None) for each in records]


def as_0_1_wrote_it(line: str) -> str:
    """The line of a record in the text of autotune 0.1, which had three fields for a scheme."""
    row = json.loads(line)
    layer = Layer(row["n"], row["k"], Scheme.parse(row.pop("scheme")))
    mode, evidence = row.pop("mode"), row.pop("evidence", None)
    front = {"n": layer.n, "k": layer.k, "group_size": layer.group_size, "dtype": layer.dtype}
    row = {**front, "zero_point": layer.zero_point, **row}
    if evidence is not None:
        row["evidence"] = {"mode": mode, **evidence}
    return json.dumps(row, separators=(",", ":"))


def test_the_text_of_0_1_is_read(tmp_path, whole):
    header, *lines = whole.read_text().splitlines()
    older = [as_0_1_wrote_it(line) for line in lines]
    in_its_order = sorted(older, key=lambda line: tuple(json.loads(line).values())[:6])
    path = tmp_path / "older.jsonl"
    path.write_text("\n".join((header, *in_its_order)))
    assert sorted(read_text(path)[1], key=lambda each: each.problem) == IN_ORDER
    file = RecordFile(path)
    assert file.layers == set(LAYERS)
    for layer in LAYERS:
        assert file.records(layer) == bare(layer)
    assert [each.mode for each in file.records(LAYERS[3])] == ["server"] * len(BUCKETS)
    assert file.bad == []


def test_a_line_of_0_1_without_evidence_is_of_mode_graph(tmp_path):
    path = tmp_path / "older.jsonl"
    write_text([record()], ENVIRONMENT, path)
    header, line = path.read_text().splitlines()
    path.write_text(f"{header}\n{as_0_1_wrote_it(line)}\n")
    assert RecordFile(path).records(record().problem.layer) == read_text(path)[1] == [record()]
