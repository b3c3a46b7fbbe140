"""Files of keys: who may read them, where they are written, and what is wrong in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.bundles.keys import (
    PublicKey,
    distrust,
    find_trusted,
    new_key,
    own_keys,
    signing_key,
    trust,
    trusted_keys,
)
from autotune.values.errors import TrustError

ONE, OTHER = PublicKey(bytes(32), "one"), PublicKey(bytes(range(32)), "other")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "autotune"


@pytest.fixture
def listed(folder):
    """Writes the list of trusted keys."""

    def write(*lines: object) -> Path:
        folder.mkdir(exist_ok=True)
        path = folder / "trusted.keys"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


def refused(call, *arguments: object) -> str:
    with pytest.raises(TrustError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_private_key_is_its_owners_alone(folder, umask):
    before = os.umask(umask)
    try:
        key = new_key("release")
    finally:
        os.umask(before)
    path = folder / "keys" / "release.key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert signing_key("release").public == key
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        assert refused(signing_key, "release").endswith(f"run: chmod 600 {path}")
        assert own_keys() == [key]  # to list it harms nobody


def test_a_key_that_cannot_be_written_leaves_its_name_free(folder):
    full = "import resource as r, signal as s; s.signal(s.SIGXFSZ, s.SIG_IGN); r.setrlimit(1, (10, 10))"
    program = f"{full}; from autotune.bundles.keys import new_key; new_key('release')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "cannot be written (File too large)" in ended.stderr
    assert new_key("release").name == "release"
    assert [path.name for path in folder.rglob("*.key")] == ["release.key"]


def test_a_list_that_is_a_link_stays_one(folder, tmp_path):
    shared = tmp_path / "shared" / "trusted"
    shared.parent.mkdir()
    shared.write_text(f"{ONE}\n")
    folder.mkdir()
    link = folder / "trusted.keys"
    link.symlink_to("../shared/trusted")
    trust(OTHER)
    assert link.is_symlink()
    assert shared.read_text() == f"{ONE}\n{OTHER}\n"
    distrust("one")
    assert (link.is_symlink(), trusted_keys()) == (True, [OTHER])
    assert [path.name for path in shared.parent.iterdir()] == ["trusted"]


def test_what_else_is_in_the_list_stays(listed):
    path = listed("# of the fleet", ONE, "", "  # of a friend")
    trust(OTHER)
    distrust("one")
    assert path.read_text() == f"# of the fleet\n\n  # of a friend\n{OTHER}\n"


@pytest.mark.parametrize("bad", ["ssh-ed25519 AAAA me", "autotune-ed25519 AAAA me", f"{ONE} and more"])
def test_a_bad_line_is_named_and_stays(listed, bad):
    path = listed("# of the fleet", ONE, bad)
    for call, arguments in ((trusted_keys, ()), (trust, (OTHER,)), (distrust, ("one",))):
        assert refused(call, *arguments).startswith(f"{path}, line 3: {bad[:20]!r}"[:-1])
    assert path.read_text().endswith(f"{bad}\n")


def test_a_name_of_two_keys_means_neither(listed):
    namesake = PublicKey(OTHER.raw, ONE.name)
    listed(ONE, namesake)
    for call in (find_trusted, distrust):
        assert "2 trusted keys have that name; give the fingerprint" in refused(call, "one")
    assert find_trusted(namesake.fingerprint) == namesake


def test_files_that_are_none(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(2 << 20))
    new_key("release")
    for bad, why in (("pipe", "it is no file"), ("large", "more than 1048576 bytes"), (".", "it is no file")):
        assert why in refused(find_trusted, str(tmp_path / bad))
        (folder / "keys" / "bad.key").unlink(missing_ok=True)
        (folder / "keys" / "bad.key").symlink_to(tmp_path / bad)
        assert why in refused(signing_key, "bad")
        (folder / "trusted.keys").symlink_to(tmp_path / bad)
        assert why in refused(trust, ONE)
        (folder / "trusted.keys").unlink()


def test_who_gives_a_private_key_by_mistake_does_not_see_it(folder):
    new_key("release")
    path = folder / "keys" / "release.key"
    secret = path.read_text().splitlines()[1]
    told = refused(find_trusted, str(path))
    assert "holds no public key" in told
    assert secret[20:] not in told


TRUSTING = """
import sys
from autotune.bundles.keys import PublicKey, trust
print("ready", flush=True)
sys.stdin.readline()
trust(PublicKey.parse(sys.argv[1]))
"""


@pytest.mark.usefixtures("folder")
def test_those_who_trust_at_once_lose_nothing():
    keys = [PublicKey(bytes([number] * 32), f"key{number}") for number in range(4)]
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", TRUSTING, str(key)], **piped) for key in keys]
    for each in started:
        assert each.stdout.readline() == "ready\n"
    for each in started:
        each.stdin.write("\n")
        each.stdin.flush()
    for each in started:
        each.communicate()
        assert each.returncode == 0
    assert sorted(key.name for key in trusted_keys()) == [key.name for key in keys]
