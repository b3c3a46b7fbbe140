"""The commands about keys, bundles, pulls and channels, as a user types them one after the other."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from lookup_world import make_small_world, store
from store_samples import H200, LAYER, binary, record

from autotune.cli import main
from autotune.records.lookup import Lookup
from autotune.values.layer import Layer, Problem


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return make_small_world(tmp_path, monkeypatch)


@pytest.fixture
def run(capsys):
    def run(*arguments: object, code: int = 0) -> str:
        capsys.readouterr()
        assert main([str(each) for each in arguments]) == code
        shown = capsys.readouterr()
        return (shown.out if code == 0 else shown.err).strip()

    return run


def test_keys_are_made_trusted_listed_and_distrusted(run, tmp_path):
    line = run("keys", "new", "release")
    assert "is there already" in run("keys", "new", "release", code=1)
    assert "is no name of a key" in run("keys", "new", "../up", code=1)
    (private,) = (tmp_path / "config").rglob("release.key")
    assert private.stat().st_mode & 0o077 == 0
    (tmp_path / "release.pub").write_text(line + "\n")
    assert "is trusted" in run("keys", "trust", "release.pub")
    assert [each.split()[0] for each in run("keys", "list").splitlines()] == ["trusted", "signs"]
    assert "is no public key" in run("keys", "trust", "autotune-ed25519 AAAA me", code=1)
    assert "no file" in run("keys", "trust", "nobody", code=1)
    assert "no longer trusted" in run("keys", "distrust", "release")
    assert "is not trusted" in run("keys", "distrust", "release", code=1)
    assert run("keys", "list").startswith("signs here")


def test_a_bundle_from_its_making_to_a_host_and_back(run, tmp_path):
    central = tmp_path / "central.db"
    store(central, record(), record(layer=Layer(1024, 4096)), cubin=binary())
    run("keys", "new", "release")
    make = ("bundle", "create", "mine", "--db", central, "--binaries", "--samples")
    shapes = ("--shapes", "n=4096,k=4096,group_size=128")
    path = run(*make, *shapes, "--device", H200.name, "--key", "release", "--expires", 30)
    shown = json.loads(run("bundle", "show", path, "--json"))
    assert shown["bundle"].startswith("mine@")
    assert (shown["records"][0]["records"], shown["binaries"], shown["trials"]) == (1, 1, 3)
    assert "nobody here trusts its key" in run("bundle", "verify", path, code=1)
    assert "would be empty" in run(*make, "--device", "NVIDIA B200", code=1)
    run("keys", "trust", run("keys", "list").split(maxsplit=3)[3])
    assert "is whole and signed by release" in run("bundle", "verify", path)
    assert "no recheck confirms" in run("promote", path, "--db", central, code=1)
    run("promote", path, "--db", central, "--force", code=2)
    run("promote", path, "--db", central, "--force", "--reason", "first one")
    assert run("history", "--channel", "stable", "--db", central).endswith("forced: first one")
    assert run("pull", central, "--channel", "stable", "--device", "all").startswith("set ")
    assert Lookup(H200).answer(Problem(LAYER, 1)).source == "exact"
    assert run("pull", central, "--channel", "stable", "--device", "all").startswith("nothing new")
    assert "is undone; in force is nothing" in run("rollback")
    assert Lookup(H200).answer(Problem(LAYER, 1)).source == "default"
    assert "names no bundle before" in run("rollback", "--channel", "stable", "--db", central, code=1)
    assert "a --channel is one of a database" in run("pull", path, "--channel", "stable", code=1)
    assert "nobody signed it" in run("import", tmp_path, "--trust", "release", code=1)


def test_a_host_pulls_for_its_own_devices_without_being_told(run, tmp_path):
    store(tmp_path / "central.db", record())
    told = run("pull", tmp_path / "central.db")
    assert told.startswith("nothing new: 0 records")
    assert f"which has some of {H200.name}: see --device" in told


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("bundle create mine --expires 3", "give the --key that signs"),
        ("bundle create mine --key release --expires 99999", "is not in the range"),
        ("bundle create mine --device all --device cpu", "all stands alone"),
        ("bundle create mine --device ' '", "is the name of a model"),
        ("promote mine.bundle --reason why", "--force and --reason go together"),
        ("promote mine.bundle --force", "--force and --reason go together"),
        ("promote mine.bundle --reason ''", "give one line of text"),
        ("promote mine.bundle --force --reason ' '", "give one line of text"),
        ("promote mine.bundle --force --reason 'two\nlines'", "give one line of text"),
        (f"promote mine.bundle --force --reason {'a' * 501}", "give one line of text"),
        ("rollback --reason why", "give it with --channel"),
        ("rollback --channel stable --reason ''", "give one line of text"),
        ("history --channel stable --require steady", "leave out what is of records"),
        ("history --channel stable --shapes llama7b", "leave out what is of records"),
        ("history --channel stable --device cpu", "leave out what is of records"),
        ("history --channel stable --dtype bf16", "leave out what is of records"),
        ("pull central.db --watch 99999h", "is longer than a year"),
        ("pull ''", "it is blank"),
        ("push ' '", "it is blank"),
        ("push central.db --watch 0s", "is not a duration"),
    ],
)
def test_what_would_do_nothing_is_wrong_usage(run, tmp_path, arguments, why):
    (tmp_path / "mine.bundle").touch()
    assert why in run(*shlex.split(arguments), code=2)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine.bundle", "shipped"]


def test_what_a_name_holds_does_nothing_to_a_terminal(run, tmp_path):
    hostile = tmp_path / "a\x1b[31m\nb"
    hostile.write_text("no bundle")
    assert r"a\x1b[31m b" in run("import", hostile, code=1)
