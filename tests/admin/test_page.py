"""The page, in a real browser: live, in agreement with the metrics, and telling of each reload."""

from __future__ import annotations

import http.client
import os
import re
import signal
from collections.abc import Iterator

import pytest

from serve_asgi.cli.control_client import ask
from tests.admin.scraping import ADMIN, admin_address, fetch, value, wait_for
from tests.admin.test_metrics import admin_process
from tests.applications import info
from tests.browser import Page, page
from tests.running import PATIENCE, RunningServer, connect, request, running

pytestmark = [pytest.mark.once, pytest.mark.needs("chromium")]


HUB = """

from serve_asgi import messenger, schedule


@messenger.on("orders")
async def orders(message): ...


@schedule(every="1h")
async def hourly(): ...
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("page")
    (directory / "app.py").write_text(info() + HUB)
    with running("app:app", "--workers", "2", *ADMIN, directory=directory) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with page(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def opened(browser: Page, server: RunningServer) -> tuple[str, int]:
    """Open the page and wait until it is live; return its address."""
    address = admin_address(server)
    browser.look(1200, 900, "light")
    browser.open("http://{}:{}/".format(*address))
    browser.wait_for("document.getElementById('live').textContent === 'live'")
    return address


def shown(browser: Page, element: str) -> int:
    """The whole number that the element begins with."""
    return int(re.sub(r"[,.].*| .*", "", browser.text(element).replace(",", "")))


def test_the_figures_are_those_of_the_metrics(server: RunningServer, browser: Page) -> None:
    with connect(server) as connection:
        for _ in range(30):
            assert request(connection)[0] == 200
    address = opened(browser, server)
    metrics = wait_for(address, lambda now: value(now, "serve_requests_total") >= 30)
    browser.wait_for(
        f"document.getElementById('requests').textContent === '{value(metrics, 'serve_requests_total'):,.0f}'"
    )
    assert shown(browser, "lost") == value(metrics, "serve_requests_lost_total") == 0
    assert shown(browser, "errors") == value(metrics, "serve_responses_total", **{"class": "5xx"}) == 0
    assert shown(browser, "generation") == value(metrics, "serve_generation")
    assert browser.evaluate("document.querySelectorAll('#workers tr').length") == 2
    assert browser.text("headline") == "2 workers serve"


def test_messages_schedules_and_shared_keys_are_shown(server: RunningServer, browser: Page) -> None:
    opened(browser, server)
    for number in range(20):
        ask(server.control, "shared", do="set", name=f"<b>key</b>:{number}", value="x" * 10 * number)
    browser.wait_for("document.getElementById('keys-rows').children.length === 12")
    browser.wait_for("document.getElementById('keys-rows').textContent.includes('<b>key</b>:19')")
    assert browser.text("keys-more").startswith("12 of 20 keys")
    longest = browser.evaluate("document.querySelector('#keys-rows td.value').textContent")
    assert len(longest) == 60
    assert longest.endswith("…")
    assert browser.evaluate("document.querySelectorAll('#keys b').length") == 0
    assert "orders" in browser.text("topics-rows")
    assert "every 1h" in browser.text("schedules-rows")


def test_a_reload_is_a_mark_and_a_band_and_a_refused_one_a_mark(server: RunningServer, browser: Page) -> None:
    address = opened(browser, server)
    before = server.status()["generation"]
    with connect(server) as connection:
        assert request(connection)[0] == 200
        browser.wait_for("Number(document.getElementById('requests').textContent) > 0")
        server.reload()
        assert request(connection)[0] == 200
        browser.wait_for("document.getElementById('handed-over').textContent === '1'")  # at the latest after that
    for element in (".mark.done", ".band"):
        browser.wait_for(f"document.querySelector('{element}[data-generation=\"{before + 1}\"]')")
    browser.wait_for(f"document.getElementById('generation').textContent === '{before + 1}'")
    assert browser.evaluate(f"document.querySelector('.band[data-generation=\"{before}\"]') !== null")
    (server.directory / "app.py").write_text(
        "import nothing_of_this_name  # <img src=x onerror='window.broken = 1'><script>window.broken = 1</script>"
    )
    server.signal(signal.SIGHUP)
    browser.wait_for("document.querySelector('.mark.refused')")
    browser.wait_for("document.getElementById('notes').textContent.includes('refused')")
    browser.wait_for("document.getElementById('records').textContent.includes('nothing_of_this_name')")
    assert value(wait_for(address, lambda _: True), "serve_last_reload_successful") == 0
    assert "<img src=x" in str(browser.evaluate("document.getElementById('records').textContent"))
    assert browser.evaluate("[window.broken ?? 0, document.querySelectorAll('img, #records script').length]") == [0, 0]
    for mark, actor in (("refused", "HUP"), ("done", "serve reload, ")):
        browser.wait_for(f"document.querySelector('.mark.{mark}').ariaLabel.includes('by {actor}')")
    browser.evaluate("document.querySelector('.mark.refused').focus()")
    assert "Reload refused" in browser.text("tip")
    assert browser.text("tip").endswith("by HUP")
    assert browser.text("legend-marks") == "↻reload×refused"
    refused = "document.querySelector('#records li[data-event=reload_refused]')"
    assert browser.evaluate(f"{refused}.querySelector('.actor').textContent") == "HUP"
    assert browser.evaluate(f"{refused}.querySelector('.chip').textContent") == str(before + 2)
    (server.directory / "app.py").write_text(info())


def test_deploys_are_listed_with_what_they_led_to(server: RunningServer, browser: Page) -> None:
    opened(browser, server)
    before = server.status()["generation"]
    server.reload()
    after = server.status()["generation"]
    browser.wait_for("document.querySelector('#deploys li').dataset.outcome === 'done'")
    browser.wait_for(f"document.querySelector('#deploys .generations').textContent === '{before}→{after}'")
    browser.wait_for("document.querySelector('#deploys .figures').textContent.endsWith('0 cut')")  # of the old one
    assert "serve reload" in browser.evaluate("document.querySelector('#deploys li').textContent")
    (server.directory / "app.py").write_text("import nothing_of_this_name\n")
    server.signal(signal.SIGHUP)
    browser.wait_for("document.querySelector('#deploys li').dataset.outcome === 'refused'")
    assert "HUP" in browser.evaluate("document.querySelector('#deploys li').textContent")
    (server.directory / "app.py").write_text(info())
    last = browser.evaluate("document.querySelector('#deploys li:last-child').dataset.outcome")
    assert last == "started" or browser.evaluate("document.querySelectorAll('#deploys li').length") == 10


def test_it_comes_back_by_itself_with_what_happened_before(server: RunningServer, browser: Page) -> None:
    opened(browser, server)
    before = browser.evaluate("document.querySelectorAll('#records li').length")
    os.kill(process := admin_process(server), signal.SIGSTOP)
    browser.wait_for("document.getElementById('live').textContent.startsWith('nothing heard for ')")
    os.kill(process, signal.SIGCONT)
    browser.wait_for("document.getElementById('live').textContent === 'live'")
    os.kill(process, signal.SIGKILL)
    browser.wait_for("document.getElementById('live').dataset.begun === '2'")
    assert browser.evaluate("document.querySelectorAll('#records li').length") >= before


def test_it_fits_a_telephone_and_draws_in_the_dark(server: RunningServer, browser: Page) -> None:
    opened(browser, server)
    browser.look(390, 800, "dark")
    browser.wait_for("document.documentElement.scrollWidth <= innerWidth")
    drawn = "[...document.querySelectorAll('section:not([hidden]) > canvas')]"
    drawn += ".every(each => each.width > 300 && each.toDataURL().length > 1000)"
    browser.evaluate("dispatchEvent(new Event('resize'))")
    browser.wait_for(drawn)


def test_charts_without_anything_to_show_are_folded(server: RunningServer, browser: Page) -> None:
    opened(browser, server)
    browser.wait_for("document.getElementById('folded').textContent.includes('streams')")  # the application has none
    hidden = "[...document.querySelectorAll('#charts .card[hidden] h2')].map(each => each.textContent)"
    assert "Streams: first byte, duration" in browser.evaluate(hidden)
    assert "Memory" not in browser.evaluate(hidden)


def test_the_page_asks_no_other_host(server: RunningServer) -> None:
    address = admin_address(server)
    for path in ("/", "/page.css", "/page.js", "/charts.js", "/events.js", "/format.js", "/hub.js"):
        status, _, text = fetch(address, path)
        assert status == 200
        assert not re.search(r"https?:|//cdn|@import|url\(", text), path
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
    connection.request("HEAD", "/")
    answer = connection.getresponse()
    assert answer.getheader("content-security-policy", "").startswith("default-src 'self'")
    connection.close()
