"""Every page in Debian's chromium, over what a real sweep wrote: clicked through, with a silent console."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import autotune
from store_samples import H200
from web_world import HOSTILE, fill, record, served

from autotune.store.queue import Queue
from autotune.store.store import Store
from autotune.values.device import cpu_device
from autotune.values.layer import Layer, Problem

selenium = pytest.importorskip("selenium", reason="no selenium: pip install -e '.[web-test]'")
if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
    pytest.skip("no browser: apt-get install chromium chromium-driver", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

LAYER = Layer(256, 256, group_size=64)
LIMIT_S = 30


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a sweep of this machine's CPU wrote, and beside it a device and errors whose texts are hostile."""
    folder = tmp_path_factory.mktemp("browser")
    shapes = ("--shapes", str(LAYER), "--m", "1,2,4", "--device", "cpu", "--allow-busy")
    swept = autotune("sweep", *shapes, "--budget", "20s", "--db", "real.db", cwd=folder)
    assert swept.returncode == 0, swept.stderr
    hostile = H200.__class__(**{name: getattr(H200, name) for name in H200.__slots__} | {"name": HOSTILE})
    fill(folder / "real.db", [record(Problem(Layer(4096, 4096), m), hostile) for m in (1, 2)], hostile)
    return folder / "real.db"


@pytest.fixture(scope="module")
def address(database: Path) -> Iterator[str]:
    with served(database.parent, "--db", str(database)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_page_load_timeout(LIMIT_S)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, address: str) -> Iterator[Callable[[str], None]]:
    """Opens a page; at the end of the test nothing may be in the console, and no script of others has run."""

    def opened(path: str) -> None:
        browser.get(address + path)
        # The driver may come back before the style sheet has.
        until(browser, lambda it: it.execute_script("return document.readyState") == "complete")

    yield opened
    assert [line["message"] for line in browser.get_log("browser")] == []
    assert browser.title.endswith(" · autotune")


def one(browser: webdriver.Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def until(browser: webdriver.Chrome, holds: Callable[[webdriver.Chrome], object]) -> None:
    WebDriverWait(browser, LIMIT_S).until(holds)


def test_from_the_map_to_a_problem_and_on(browser, page):
    page("")
    browser.find_element(By.LINK_TEXT, f"{cpu_device().name} {cpu_device().arch}").click()
    cell = one(browser, ".map a[aria-label^='m=1:']")
    assert re.match(r"m=1: \d\.\d\d×, a record of this database", cell.get_attribute("aria-label"))
    cell.click()
    assert one(browser, "h1").text.startswith("256 × 256, 1 token")
    assert len(browser.find_elements(By.CSS_SELECTOR, "svg.chart circle")) >= 1
    assert len(browser.find_elements(By.CSS_SELECTOR, "tr.winner")) == 1
    one(browser, "a[rel=next]").click()
    assert one(browser, "h1").text.startswith("256 × 256, 2 tokens")


def test_every_page_is_reached_from_the_bar_by_keyboard(browser, page):
    page("")
    for title in ("Coverage", "Compare", "Kernels", "Queue", "Figures"):
        browser.find_element(By.LINK_TEXT, title).send_keys(Keys.ENTER)
        until(browser, lambda it, title=title: one(it, "nav a[aria-current=page]").text == title)
        assert one(browser, "main h1").is_displayed()


def test_arrow_keys_move_in_a_map(browser, page):
    page("?tokens=coarse")
    links = browser.find_elements(By.CSS_SELECTOR, ".map tbody tr:first-child a")
    assert [link.get_attribute("tabindex") for link in links[:2]] == ["0", "-1"]
    links[0].send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element == links[1]
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert browser.switch_to.active_element == links[0]


def test_a_table_is_sorted_and_its_order_is_in_the_url(browser, page):
    page(f"problem?device={cpu_device().name}+{cpu_device().arch}&layer={LAYER}&m=1".replace(" ", "+"))

    def configs() -> list[str]:
        return [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, ".data td:nth-child(6)")]

    browser.find_element(By.XPATH, "//th/button[text()='config']").click()
    until(browser, lambda _: configs() == sorted(configs()))
    browser.find_element(By.XPATH, "//th/button[text()='config']").click()
    until(browser, lambda _: configs() == sorted(configs(), reverse=True))
    assert one(browser, "th[aria-sort=descending]").text.startswith("config")
    browser.get(browser.current_url)
    until(browser, lambda _: configs() == sorted(configs(), reverse=True))


def test_a_table_is_copied_as_csv(browser, page, address):
    browser.execute_cdp_cmd(
        "Browser.grantPermissions",
        {"origin": address.rstrip("/"), "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]},
    )
    page("kernels")
    button = browser.find_element(By.XPATH, "//h2[@id='space']/following::button[text()='copy as CSV'][1]")
    button.click()
    until(browser, lambda _: button.text == "copied")
    copied = browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])").splitlines()
    assert copied[0] == "family,tried,timed to the end,lost to pruning,failed,wrong,records"
    shown = [row.text.replace(" ", ",") for row in browser.find_elements(By.CSS_SELECTOR, ".data tbody tr")]
    assert copied[1] in shown


def test_the_queue_moves_while_it_is_open(browser, page, database):
    page("queue")
    until(browser, lambda it: one(it, "#pulse").text == "live")
    asked = Problem(LAYER, 32)
    with Store.open(database) as store:
        Queue(store).add([(asked, 5e6)], H200.name, H200.arch, "sources")
    until(browser, lambda it: str(asked) in one(it, "#live").text)


def test_hostile_texts_are_texts(browser, page):
    page("")
    assert HOSTILE in one(browser, ".chips").text
    browser.find_element(By.PARTIAL_LINK_TEXT, "document.title").click()
    one(browser, ".map a[aria-label^='m=1:']").click()
    assert HOSTILE in one(browser, ".data").text
    page("kernels")
    browser.find_element(By.PARTIAL_LINK_TEXT, "document.title").click()
    assert HOSTILE in one(browser, "#troubles ~ .scroll").text


def wide(browser: webdriver.Chrome) -> list[str]:
    """The charts and tables that stick out of the window and are in no box that scrolls."""
    script = """
        return [...document.querySelectorAll("svg, table, select, pre, code, p")]
            .filter((each) => !each.closest(".scroll") && each.getBoundingClientRect().right > innerWidth)
            .map((each) => each.outerHTML.slice(0, 80))
    """
    return browser.execute_script(script)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_its_window(browser, page, scheme, width):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    grounds = set()
    device = f"device={cpu_device().name} {cpu_device().arch}".replace(" ", "+")
    problem = f"problem?{device}&layer={LAYER}&m=1"
    for path in ("", "?tokens=all", problem, "compare", "kernels", "queue", "figures", "?model=foo"):
        page(path)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, path
        assert wide(browser) == [], path
        grounds.add(one(browser, "body").value_of_css_property("background-color"))
        if path == problem:
            dot, box = (one(browser, css).rect for css in (".chart .winner .dot", "#strip + .scroll"))
            assert box["x"] <= dot["x"] <= box["x"] + box["width"]
    assert [line["message"] for line in browser.get_log("browser") if "404" not in line["message"]] == []
    (ground,) = grounds
    assert (int(re.search(r"\d+", ground)[0]) < 128) == (scheme == "dark")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_report_needs_no_server(browser, database):
    written = autotune("report", "report", "--db", str(database), "--problems", "2", cwd=database.parent)
    assert written.returncode == 0, written.stderr
    browser.get((database.parent / "report" / "index.html").as_uri())
    browser.find_element(By.LINK_TEXT, "Kernels").click()
    assert one(browser, "main h1").text.startswith("Which kernel wins where")
    assert one(browser, "button.copy").is_displayed()
    assert [line["message"] for line in browser.get_log("browser")] == []
