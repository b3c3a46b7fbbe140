"""What a URL asks for and is not there: a page that names the value, and links to those that there are."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from store_samples import H100, H200
from web_world import HOSTILE, LAYER, fill, get, parsed, record, served, text, two_devices

from autotune.values.layer import Problem
from autotune.web.query import Query, device_key
from autotune.web.site import VIEWS, Site

DEVICE, ITS = ("device", device_key(H200)), ("layer", str(LAYER))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    path = tmp_path_factory.mktemp("urls") / "a.db"
    two_devices(path)
    return Site(path)


@pytest.mark.parametrize(
    ("page", "pairs", "wrong", "other"),
    [
        ("coverage", [], ("device", "no such"), device_key(H100)),
        ("coverage", [DEVICE], ("device", HOSTILE), device_key(H100)),
        ("coverage", [], ("model", "foo"), "llama7b"),
        ("coverage", [], ("metric", "speed"), "roofline"),
        ("coverage", [], ("tokens", "some"), "coarse"),
        ("coverage", [], ("page", "x"), "1"),
        ("coverage", [], ("page", "2"), "1"),
        ("problem", [ITS], ("device", "NVIDIA H300 sm_90"), device_key(H100)),
        ("problem", [DEVICE], ("layer", "/etc/passwd"), str(LAYER)),
        ("problem", [DEVICE], ("layer", "n=1,k=2"), str(LAYER)),
        ("problem", [DEVICE, ITS], ("m", "-1"), "1"),
        ("problem", [DEVICE, ITS], ("m", "9" * 400), "1"),
        ("problem", [DEVICE, ITS, ("m", "1")], ("sort", "trials.99.up"), "trials.1.down"),
        ("problem", [DEVICE, ITS, ("m", "1")], ("sort", "trials.4.up"), "trials.1.down"),
        ("compare", [], ("a", "sweep:1e9"), "sweep:1"),
        ("compare", [("a", "sweep:1")], ("b", "device:\0"), "shipped:nvidia-h200"),
        ("compare", [], ("page", "2"), "1"),
        ("compare", [], ("sort", "change"), "changes.4.down"),
        ("kernels", [], ("device", "\0"), device_key(H200)),
        ("kernels", [], ("sort", "space.1.sideways"), "space.1.up"),
        ("queue", [], ("state", "lost"), "queued"),
        ("queue", [], ("page", "0"), "1"),
        ("queue", [("state", "done")], ("page", "9"), "1"),
        ("queue", [], ("sort", "trials.1.up"), "jobs.0.up"),
        ("figures", [], ("sort", "sums99.1.up"), "sums1.0.up"),
    ],
)
def test_an_unknown_value_is_named_and_others_are_linked_to(site, page, pairs, wrong, other):
    name, value = wrong
    kept = [pair for pair in pairs if pair[0] != name]
    found = site.page(page, Query([*kept, wrong]))
    assert found.status == 404
    assert f"{name}={value!r}"[:400] in text(found.html)
    links = [attrs["href"] for tag, attrs in parsed(found.html).tags if tag == "a" and attrs.get("href")]
    asked = [parse_qsl(urlsplit(link).query) for link in links]
    assert sorted([*kept, (name, other)]) in [sorted(each) for each in asked]
    there = Query([*kept, (name, other), *([ITS] if page == "problem" else [])])
    assert site.page(page, there).status == 200


def test_a_problem_without_its_layer_or_device_says_so(site):
    for pairs, missing in (([], "no device is named"), ([DEVICE], "no layer is named")):
        found = site.page("problem", Query(pairs))
        assert (found.status, missing in text(found.html)) == (404, True)


@pytest.mark.parametrize("page", VIEWS)
def test_every_column_of_a_page_can_be_sorted_by_its_link(site, page):
    pairs = [DEVICE, ITS, ("m", "1")] if page == "problem" else []
    html = site.page(page, Query(pairs)).html
    tables = [
        attrs["data-csv"] for tag, attrs in parsed(html).tags if tag == "table" and "data-sort" in attrs
    ]
    for table in tables:
        head = html[html.index(f'data-csv="{table}"') :].partition("</thead>")[0]
        for column, each in enumerate(head.split("<th ")[1:]):
            found = site.page(page, Query([*pairs, ("sort", f"{table}.{column}.down")]))
            assert found.status == (404 if "data-still" in each else 200), (table, column)


def test_the_live_page_refuses_what_the_page_refuses(tmp_path):
    fill(tmp_path / "a.db", [record(Problem(LAYER, 1))])
    with served(tmp_path, "--db", "a.db") as address:
        for path in ("queue", "queue/events"):
            status, content, _ = get(f"{address}{path}?state=lost")
            assert (status, "state='lost'" in text(content)) == (404, True)
