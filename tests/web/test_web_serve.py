"""The server: who may ask, what every answer carries, what is live, and reports that need no server."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from command_line import autotune
from databases import change
from store_samples import H200
from web_world import LAYER, fill, get, parsed, record, served, text, two_devices

from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.layer import Problem

TOKEN = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    two_devices(folder / "a.db")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path):
    with served(folder, "--db", "a.db") as address:
        yield address


def test_it_serves_on_loopback_alone(address):
    assert urlsplit(address).hostname == "127.0.0.1"
    port = urlsplit(address).port
    with socket.socket() as other:
        other.bind(("127.0.0.2", port))  # free, as every address but one is


def test_every_answer_keeps_scripts_and_frames_out(address):
    for path in ("", "nope", "static/style.css"):
        _, _, headers = get(address + path)
        policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers


def test_pages_hold_nothing_that_the_policy_would_stop(address):
    for path in ("", "compare", "kernels", "queue", "figures"):
        tags = parsed(get(address + path)[1]).tags
        assert not [
            attrs for _, attrs in tags if "style" in attrs or any(name.startswith("on") for name in attrs)
        ]
        assert not [tag for tag, _ in tags if tag == "style"]
        for tag, attrs in tags:
            for name in ("src", "href", "action"):
                assert not urlsplit(attrs.get(name) or "").netloc, (tag, attrs)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:80", 200), ("[::1]:8347", 200), ("127.0.0.1", 200),
        ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("evil.example:8347", 421), ("", 421),
    ],
)  # fmt: skip
def test_another_host_name_is_refused(address, host, status):
    assert get(address, Host=host)[0] == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_there_is_nothing_to_write(address, method):
    assert get(address, method)[0] == 405


@pytest.mark.parametrize(
    "path", ["static/../app.py", "static/%2e%2e/app.py", "static/..%2fsite.py", "static/"]
)
def test_no_other_file_is_served(address, path):
    assert get(address + path)[0] == 404


def test_an_address_that_others_reach_needs_a_token(folder):
    for arguments in (["--host", "0.0.0.0"], ["--host", "::"], ["--host", "192.0.2.1"]):
        ended = autotune("serve", *arguments, "--port", "0", "--db", "a.db", cwd=folder)
        assert ended.returncode == 1
        assert "needs --token" in ended.stderr
    ended = autotune("serve", "--token", "short", "--port", "0", "--db", "a.db", cwd=folder)
    assert "a token of 5 characters can be guessed" in ended.stderr


@pytest.mark.parametrize(("token", "odd"), [("schlüssel-zum-haus", "ü"), ("a+b" * 6, "+"), ("a b" * 6, " ")])
def test_a_token_that_a_url_or_a_header_would_garble_is_refused(folder, token, odd):
    ended = autotune("serve", "--token", token, "--port", "0", "--db", "a.db", cwd=folder)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"error: a token has ASCII letters, digits and - . _ ~ only, not {odd!r}; "
        "give another, as from: openssl rand -hex 16\n"
    )


def test_two_servers_of_a_host_keep_each_other_logged_in(folder):
    arguments = ("--db", "a.db", "--token")
    with served(folder, *arguments, TOKEN) as one, served(folder, *arguments, TOKEN[::-1]) as other:
        cookies = {}  # as a browser keeps them: by name, whatever the port
        for address, token in ((one, TOKEN), (other, TOKEN[::-1])):
            name, _, value = get(f"{address}?token={token}")[2]["set-cookie"].partition(";")[0].partition("=")
            cookies[name] = value
        for address in (one, other):
            assert get(address, Cookie="; ".join(map("=".join, cookies.items())))[0] == 200


def test_with_a_token_only_who_has_it_sees_a_page(folder):
    with served(folder, "--db", "a.db", "--token", TOKEN) as address:
        for path in ("", "queue/events", "static/page.js"):
            status, content, _ = get(address + path)
            assert (status, TOKEN in content) == (401, False)
        assert get(address, Authorization="Bearer wrong")[0] == 401
        assert get(f"{address}?token=wrong")[0] == 401
        assert get(address, Authorization=f"Bearer {TOKEN}")[0] == 200
        status, content, headers = get(f"{address}kernels?token={TOKEN}&device=x")
        assert (status, headers["location"], content) == (303, "/kernels?device=x", "")
        cookie = headers["set-cookie"]
        assert TOKEN not in cookie
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        status, content, _ = get(address, Cookie=cookie.partition(";")[0])
        assert (status, TOKEN in content) == (200, False)
        assert get(address, Cookie=f"{cookie.partition('=')[0]}=forged")[0] == 401
        assert get(f"{address}/evil.example?token={TOKEN}")[2]["location"] == "/evil.example"


@pytest.mark.parametrize("arguments", [["serve", "--port", "0"], ["report", "unwritten"]], ids=" ".join)
def test_without_the_extra_it_says_what_to_install(folder, arguments):
    code = (
        f"import sys; sys.modules['jinja2'] = None; import autotune.cli as c; sys.exit(c.main({arguments}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "error: pages need the Python module jinja2; run: pip install 'autotune-int4[web]'\n"
    )


def test_a_host_that_is_none_is_one_line(folder):
    for host in ("unknown.invalid", "x" * 300):
        told = autotune("serve", "--host", host, "--token", "a" * 32, "--db", "a.db", cwd=folder)
        assert told.returncode == 1
        assert told.stderr.startswith(f"error: --host {host!r} is no address here (")
        assert "--port" not in told.stderr


def test_a_port_that_is_taken_is_one_line(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = autotune("serve", "--port", str(port), "--db", "a.db", cwd=folder)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"error: port {port} of 127.0.0.1 cannot be had (Address already in use); "
        "give another --port, 0 for any free one\n"
    )


def test_the_queue_tells_its_news(folder):
    path = folder / "live.db"
    fill(path, [record(Problem(LAYER, 1))])
    with contextlib.ExitStack() as open_still, served(folder, "--db", str(path)) as address:
        # It outlasts the server, which says nothing of it when Ctrl-C comes: `served` checks that.
        stream = open_still.enter_context(urllib.request.urlopen(f"{address}queue/events"))
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert "No job is queued" in _news(stream)
        with Store.open(path) as store:
            Queue(store).add([(Problem(LAYER, 24), 2e6)], H200.name, H200.arch, "sources")
        assert str(Problem(LAYER, 24)) in _news(stream)
        change(path, "UPDATE alembic_version SET version_num = '9999'")
        assert re.match(r"database \S+ has schema revision 9999, made by a newer autotune", _news(stream))


def _news(stream) -> str:
    """What the next event shows."""
    while not (line := stream.readline()).startswith(b"data: "):
        assert line
    return text(json.loads(line.removeprefix(b"data: ")))


def test_a_report_is_the_same_pages_as_files(folder):
    ended = autotune("report", "out", "--db", "a.db", "--problems", "3", cwd=folder)
    assert (ended.returncode, ended.stdout) == (0, "out/index.html\n")
    files = {file.name: file for file in (folder / "out").iterdir()}
    assert {
        "index.html",
        "kernels.html",
        "compare.html",
        "queue.html",
        "figures.html",
        "style.css",
    } <= files.keys()
    assert sum(name.startswith("problem-") for name in files) == 3
    for file in files.values():
        if file.suffix == ".html":
            for tag, attrs in parsed(file.read_text(encoding="utf-8")).tags:
                assert "data-events" not in attrs
                for name in ("src", "href"):
                    target = (attrs.get(name) or "").partition("#")[0]
                    assert not target or target in files, (file.name, tag, attrs)
    index = files["index.html"].read_text(encoding="utf-8")
    assert "1.20×, a record of this database" in index
    assert re.search(r"Written by autotune report, \d{4}-\d\d-\d\d \d\d:\d\d UTC", text(index))


def test_a_report_that_cannot_be_written_is_one_line(folder):
    (folder / "file").write_text("")
    ended = autotune("report", "file/below", "--db", "a.db", cwd=folder)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: report file/below cannot be written (Not a directory)")
