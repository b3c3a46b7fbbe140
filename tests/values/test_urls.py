"""Database URLs: shown without their secrets wherever one is shown, and refused when they are mistyped."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import pytest
import sqlalchemy as sa
from command_line import autotune
from daemons import LIMIT_S, command_line
from runtime_tools import AwqLinear, weight_of
from torch import nn

from autotune.models.apply import apply
from autotune.records.lookup import Lookup
from autotune.records.misses import miss_file
from autotune.runtime.handle import handle_of
from autotune.store.store import Store
from autotune.values.device import cpu_device
from autotune.values.errors import DatabaseError
from autotune.values.layer import Layer
from autotune.values.paths import database_url, shown
from autotune.values.urls import server, why_no_database

SECRET = "s3cret"
AWAY = (
    f"postgresql://me:{SECRET}@localhost:1/fleet",
    f"postgresql://me@localhost:1/fleet?password={SECRET}",
    f"postgresql://me@localhost:1/fleet?sslmode=disable&p%61ssword={SECRET}",
    f"postgresql://me@localhost:1/fleet?sslpassword={SECRET}",
    f"postgresql://me@localhost:1/fleet?pasword={SECRET}",
    f"postgresql://me:a/{SECRET}?@localhost:1/fleet",
)
"""URLs of a server that does not answer, or that say what it does not know."""
NO_URLS = (
    f"postgresql://me:{SECRET}@localhost:bad/fleet",
    f"postgresql://me:{SECRET}/fleet",
    f"postgresql://me:{SECRET}",
    f"postgresql://me:a@{SECRET}@localhost/fleet",
    f"postgresql://me@localhost/fleet?plugin={SECRET}",
    f"postgresql:/me:{SECRET}@localhost/fleet",
    f"postgresql:me:{SECRET}@localhost/fleet",
    f"postgres//me:{SECRET}@localhost/fleet",
    f"postgresql+psycopg:/me:{SECRET}@localhost/fleet",
    f"postgersql:/me:{SECRET}@localhost/fleet",
    f"me:{SECRET}@localhost/fleet",
    f"//me:{SECRET}@localhost/fleet",
    f"host=localhost user=me password={SECRET}",
    f"mysql://me:{SECRET}@localhost/fleet",
    "sqlite:here.db",
    "sqlite:/here.db",
    "sqlite://here.db",
)
FILES = ("here.db", "./postgresql:/me@h/x", "a:1.db", "folder/a@b.db", "/tmp/a:b@c.db", "~/a=b.db")


def model() -> nn.Module:
    return nn.Sequential(AwqLinear(weight_of(Layer(64, 64, group_size=64)))).eval()


@pytest.mark.parametrize("url", AWAY + NO_URLS)
def test_no_error_has_a_secret(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatabaseError) as raised:
        Store.open(url)
    assert SECRET not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", NO_URLS)
def test_what_looks_like_a_url_and_is_none_says_what_to_give(url):
    with pytest.raises(DatabaseError, match=r"give a path, sqlite:///path or postgresql://user@host/name$"):
        Store.open(url)


@pytest.mark.parametrize("url", AWAY + NO_URLS)
def test_a_model_loads_whatever_the_url_and_shows_no_secret(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        apply(model(), db=url)
    told = [str(warning.message) for warning in caught]
    assert any("--db" in line for line in told)
    assert not any(SECRET in line for line in told)
    assert miss_file(url) == tmp_path / "data" / "autotune" / "autotune.db.misses.jsonl"
    assert SECRET not in handle_of(
        Layer(64, 64, group_size=64), "cpu", Lookup(cpu_device(), url).url, None, {}
    )


@pytest.mark.parametrize("name", FILES)
def test_a_path_stays_a_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown(name) == name
    assert database_url(name) == f"sqlite:///{Path(name).expanduser().absolute()}"
    assert shown(database_url(name)) == str(Path(name).expanduser().absolute())


def test_a_url_is_shown_as_it_was_given_but_for_its_secrets():
    url = (
        "postgresql+psycopg://me:a%40b@[::1]:5432/fleet?host=/tmp/x%20y&sslmode=require&sslpassword=a&user=b"
    )
    assert shown(url) == "postgresql+psycopg://me@[::1]:5432/fleet?host=/tmp/x%20y&sslmode=require&user=b"
    assert shown("postgres://h") == "postgres://h"
    assert shown("postgresql://:a@h/x") == "postgresql://h/x"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://",
        "postgresql://host",
        "postgresql://me@host:5432/fleet",
        "postgresql://me:pass%2Fw%40rd@host/fleet",
        "postgresql://me:a/b?c#d:e@host/fleet",
        "postgresql://me@corp:a@host/fleet",
        "postgresql://me@/fleet?host=/tmp/a&host=/tmp/b&sslmode=require",
        "postgresql://[fe80::1]:5432/fleet",
    ],
)
def test_a_url_says_what_sqlalchemy_reads_in_it(url):
    assert why_no_database(url) is None
    assert sa.URL.create("postgresql", **server(url)) == sa.make_url(url)


@pytest.mark.parametrize(
    ("verb", "url"),
    [
        (("doctor",), AWAY[1]),
        (("doctor",), NO_URLS[0]),
        (("jobs",), NO_URLS[5]),
        (("db", "upgrade"), AWAY[0]),
    ],
)
def test_no_verb_shows_a_secret(verb, url, tmp_path):
    ended = autotune(*verb, "--db", url, cwd=tmp_path)
    said = ended.stdout + ended.stderr
    assert "database postgresql:/" in said
    assert SECRET not in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_daemon_shows_no_secret(tmp_path):
    with command_line(tmp_path, "--db", AWAY[1], "--port", "0") as daemon:
        address = daemon.until("start")["http"]
        assert "postgresql://me@localhost:1/fleet" in daemon.until("database away")["reason"]
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(f"{address}/healthz", timeout=LIMIT_S)
        text = answer.value.read().decode()
        assert "postgresql://me@localhost:1/fleet" in " ".join(json.loads(text)["wrong"])
        assert daemon.stop() == 0
    assert SECRET not in text + "".join(daemon.lines)


def test_a_config_that_transformers_prints_and_saves_has_no_secret():
    pytest.importorskip("transformers")
    from autotune.models.quantizer import QuantizationConfig

    config = QuantizationConfig(db=AWAY[0])
    assert SECRET not in f"{config} {config.to_dict()}"
    assert QuantizationConfig(db="here.db").db == "here.db"
