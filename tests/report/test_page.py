"""The report in a real browser without a network."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.analysis import made
from tests.helpers import Process, command, completed

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Seen:
    """A page, and what it has asked for or complained about."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(offline=True, **options)
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, path: Path) -> Page:
        self.page.goto(path.absolute().as_uri())
        self.page.wait_for_selector("html[data-ready]")
        return self.page


def report(folder: Path, *words: object) -> Process:
    done = completed(command("report", folder, *words))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def phase2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return made.sweep(folder, ttft=lambda one: 1.3 if one.backend == "tcp" else 1.0)


def test_it_is_one_small_file_that_asks_for_nothing(browser: Browser, phase2: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report(phase2, "-o", path)
    assert path.stat().st_size < 2.5e6
    seen = Seen(browser, viewport={"width": 1400, "height": 900})
    page = seen.open(path)
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 1000
    page.mouse.wheel(0, 30_000)
    for name in ("ratios", "ttft", "tpot", "transfer", "streams", "pareto", "requests", "timeline"):
        page.locator(f"#figure-{name}").scroll_into_view_if_needed()
        page.wait_for_selector(f"#figure-{name} svg")
    assert [url for url in seen.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert seen.complaints == []
    seen.context.close()


def test_its_numbers_are_those_of_the_records(browser: Browser, phase2: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report(phase2, "-o", path)
    seen = Seen(browser)
    page = seen.open(path)
    shown = page.evaluate(
        "[...document.getElementById('cells').tBodies[0].rows].map(row => [...row.cells].map(c => c.textContent.trim()))"
    )
    assert len(shown) == 111
    for pattern, block, start, mean, *_ in shown:
        record = json.loads((phase2 / pattern / block / "result.json").read_text())
        assert record["metadata"]["start"] == start
        assert float(mean) == pytest.approx(record["results"]["ttft"]["mean"], rel=1e-5)
    # What is sorted and filtered is still the same rows.
    page.get_by_role("button", name="TTFT mean").click()
    column = page.evaluate(
        "[...document.getElementById('cells').tBodies[0].rows].map(r => +r.cells[3].textContent)"
    )
    assert column in (sorted(column), sorted(column, reverse=True))
    page.get_by_label("filter").fill("tcp-1k-c1")
    assert page.locator("#cells tbody tr:visible").count() == 6
    page.locator("#cells tbody tr:visible a").first.click()
    assert page.locator("details[open] pre").first.inner_text() == "vllm serve m"
    cards = json.loads(completed(command("analyze", phase2, "--json")).stdout)["comparisons"]
    for one in cards:
        text = page.locator(f"#card-{one['id']}").inner_text()
        assert f"{100 * (one['ratio'] - 1):+.1f} %" in text
        assert one["verdict"] in text
    seen.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(browser: Browser, phase2: Path, tmp_path: Path, scheme: Any) -> None:
    path = tmp_path / "report.html"
    report(phase2, "-o", path)
    for width in (1400, 400):
        seen = Seen(browser, color_scheme=scheme, viewport={"width": width, "height": 900})
        page = seen.open(path)
        page.wait_for_selector("#figure-ttft svg")
        found = Axe().run(page).response["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in serious] == []
        # Nothing makes the page itself scroll sideways.
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        seen.context.close()


def test_markup_in_names_stays_text(browser: Browser, tmp_path: Path) -> None:
    folder = made.sweep(tmp_path, "cpu-smoke")
    evil = "</script><script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
    for path in folder.glob("*/*/result.json"):
        record = json.loads(path.read_text())
        record["metadata"] |= {"pattern_id": evil, "backend": evil}
        record["results"]["valid"], record["results"]["invalid_because"] = False, [evil]
        path.write_text(json.dumps(record))
        break
    schedule = json.loads((folder / "schedule.json").read_text())
    (folder / "schedule.json").write_text(json.dumps({**schedule, "title": evil}))
    report(folder, "-o", tmp_path / "report.html")
    seen = Seen(browser)
    page = seen.open(tmp_path / "report.html")
    assert evil in page.title()
    assert page.locator("h1").inner_text() == evil
    assert (page.locator("img").count(), seen.complaints) == (0, [])
    seen.context.close()


def test_in_japanese(browser: Browser, phase2: Path, tmp_path: Path) -> None:
    report(phase2, "--lang", "ja", "-o", tmp_path / "report.html")
    seen = Seen(browser)
    page = seen.open(tmp_path / "report.html")
    assert page.locator("html").get_attribute("lang") == "ja"
    assert page.locator("#verdicts").inner_text() == "判定"
    page.wait_for_selector("#figure-ttft svg")
    assert "プロンプトのトークン数" in page.locator("#figure-ttft").inner_text()
    seen.context.close()


def test_figures_and_table_are_files_for_others(phase2: Path, tmp_path: Path) -> None:
    out = tmp_path / "my figures"
    done = report(phase2, "-o", tmp_path / "r.html", "--figures", out, "--json")
    written = [Path(path) for path in json.loads(done.stdout)["written"]]
    assert all(path.exists() for path in written)
    assert (out / "ttft.svg").read_text().startswith("<svg")
    assert (out / "ttft.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "measurements.csv").read_text().count("\n") == 112


def test_the_verdicts_are_a_run_of_mlflow(phase2: Path, tmp_path: Path, home: Path) -> None:
    for _ in range(2):
        done = report(phase2, "-o", tmp_path / "r.html", "--mlflow")
        assert "phase2: run " in done.stderr
    with contextlib.closing(sqlite3.connect(home / "tracking" / "mlflow.db")) as store:
        assert store.execute("select count(*) from runs").fetchone() == (1,)
        found = dict(store.execute("select key, value from tags").fetchall())
        ratio = store.execute("select value from metrics where key = 'CMP-01_ratio'").fetchone()[0]
    assert (found["verdict CMP-01"], found["plan"]) == ("differs", "phase2")
    assert ratio == pytest.approx(1.3, rel=0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-o", "/proc/no/r.html"), "No such file or directory"),
        (("-o", "."), ". is a folder"),
        (("--figures", "/proc/x"), "/proc/x"),
        (("--serve", "99999"), "expected a port"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    phase2: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = completed(command("report", phase2, *words))
    assert (done.returncode, said in done.stderr, "internal error" in done.stderr) == (2, True, False), (
        done.stderr
    )


def test_it_is_made_anew_while_the_sweep_runs(tmp_path: Path) -> None:
    folder = made.sweep(tmp_path, "cpu-smoke")
    last = next(folder.glob("pcpu-pair-240-c1/2/result.json"))
    text = last.read_text()
    last.unlink()
    with subprocess.Popen(command("report", folder, "--serve"), stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            url = re.search(r"http://\S+", server.stdout.readline())
            assert url

            def rows() -> int:
                with urllib.request.urlopen(url[0]) as answer:
                    return str(answer.read().decode()).count('<a href="#start-')

            before = rows()
            time.sleep(0.01)
            last.write_text(text)
            assert rows() == before + 1
        finally:
            server.terminate()


def test_a_thousand_patterns_and_foreign_files(tmp_path: Path) -> None:
    folder = made.sweep(tmp_path, "cpu-smoke")
    record = json.loads(next(folder.glob("*/*/result.json")).read_text())
    for number in range(1000):
        record["metadata"] |= {"pattern_id": f"p-{number}", "start": str(number + 10)}
        place = folder / f"p-{number}" / "1"
        place.mkdir(parents=True)
        (place / "result.json").write_text(json.dumps(record))
    (folder / "broken.json").write_text('{"version": 2,')
    (folder / "notes.json").write_text("[]")
    began = time.monotonic()
    report(folder, "-o", tmp_path / "report.html")
    assert time.monotonic() - began < 60
    assert "not JSON" in (tmp_path / "report.html").read_text()
