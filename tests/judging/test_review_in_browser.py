"""The review page, used as a reviewer uses it, in a real browser without a window."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import alert_is_present
from selenium.webdriver.support.ui import Select, WebDriverWait

from stages.judging.responses import Response
from stages.judging.review import write_review
from tests.browser import HOSTILE, chromium, new_log, new_requests
from tests.judging.making import make_response
from tests.judging.test_review import score_of

SUMMARY = {
    "score": 61.25, "score_low": 50.0, "score_high": 70.0, "base_score": 40.0,
    "win_rate": 0.75, "win_rate_low": 0.5, "win_rate_high": 0.9, "judge_auc": 0.91, "judge_reliable": 1,
}  # fmt: skip


class Page:
    """One browser, and what a reviewer does with it."""

    def __init__(self, driver: webdriver.Chrome, folder: Path) -> None:
        self.driver = driver
        self.folder = folder

    def open(
        self,
        rows: Sequence[Response],
        scores: Sequence[float | None] | None = None,
        *,
        others: dict[str, Sequence[float | None]] | None = None,
        sha: str = "ab" * 32,
        summary: dict[str, Any] = SUMMARY,
        fresh: bool = True,
    ) -> None:
        given = list(scores) if scores is not None else [float(at) for at in range(len(rows))]
        scored = [score_of(row, score) for row, score in zip(rows, given, strict=True)]
        path = self.folder / "review.html"
        write_review(path, rows, scored, summary, judges={"own": given} | (others or {}), responses_sha256=sha)
        if fresh:
            self.driver.get("about:blank")  # what a page writes when it is left must go, too
            storage = {"origin": "file://", "storageTypes": "local_storage"}
            self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", storage)
        if self.driver.current_url == path.as_uri():
            self.driver.refresh()  # by get, it may be read in another process before this one's storage is written
        else:
            self.driver.get(path.as_uri())

    def press(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.driver, duration=0).send_keys(key).perform()

    def find(self, id: str) -> WebElement:
        return self.driver.find_element("id", id)

    def text(self, id: str) -> str:
        return str(self.driver.execute_script("return document.getElementById(arguments[0]).textContent", id))

    def choose(self, id: str, text: str) -> None:
        Select(self.find(id)).select_by_visible_text(text)
        self.press(Keys.ESCAPE)  # keys are shortcuts again

    def ids(self) -> list[str]:
        """Rows shown, in order."""
        return list(self.driver.execute_script("return shown.map(row => row.id)"))

    def review(self) -> dict[str, Any]:
        """What Save would write."""
        found: dict[str, Any] = json.loads(self.driver.execute_script("return reviewText()"))
        return found

    def wait(self, until: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, 5, 0.02).until(lambda _: until())

    def saved(self, name: str) -> str:
        path = self.folder / name
        self.wait(path.exists)
        text = path.read_text(encoding="utf-8")
        path.unlink()
        return text

    def load(self, text: str) -> str:
        """Give the page a file; what it then says."""
        path = self.folder / "given.json"
        path.write_text(text, encoding="utf-8")
        self.driver.execute_script("tell('')")
        self.find("file").send_keys(str(path))
        return str(self.wait(lambda: self.text("notice")))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    with chromium(folder) as driver:
        yield Page(driver, folder)


@pytest.fixture
def page(browser: Page) -> Iterator[Page]:
    """The browser; after the test its console must be empty."""
    new_log(browser.driver)
    yield browser
    assert new_log(browser.driver) == []


def make_rows(number: int) -> list[Response]:
    return [
        make_response(
            f"Expected {at}.",
            id=str(at),
            category=("colours", "numbers", None)[at % 3],
            instruction=f"Instruction {at}.",
            response=f"Tuned {at}.",
            base_response=f"Plain {at}.",
        )
        for at in range(number)
    ]


def test_keys_move_and_score(page: Page) -> None:
    page.open(make_rows(4))
    assert page.text("instruction") == "Instruction 0."  # the worst one
    page.press("4", "j", "2", "j", "j")
    assert page.text("place") == "4 of 4"
    page.press("j", "5", "k", "k")  # there is no fifth
    assert page.text("left") == "Tuned 1."
    pressed = page.driver.find_elements("css selector", "#marks [aria-pressed=true]")
    assert [button.get_attribute("value") for button in pressed] == ["2"]
    page.press("2")  # again: clears
    assert page.review()["scores"] == {"0": {"score": 4, "note": ""}, "3": {"score": 5, "note": ""}}
    assert page.text("done") == "2 of 4 reviewed"
    page.press("k", "u")
    assert page.text("row") == "1"
    page.press("3", "u", "3", "u")
    assert "Every row shown is reviewed." in page.text("notice")


def test_everything_about_a_row_is_shown(page: Page) -> None:
    row = make_response(input="Sky", response="")._replace(finish_reason="stop", base_finish_reason="length")
    row = row._replace(samples=("Another try.", "A third."))
    page.open([row], [None], others={"gpt": [80.0]})
    text = page.find("card").text
    page.driver.find_element("css selector", "#more summary").click()
    assert page.find("more").text.endswith("samples (2)\nAnother try.\nA third.")
    for part in ("Name the colour.", "Sky", "It is red.", "(empty)", "I do not know.", "colours", "own invalid"):
        assert part in text
    for part in ("gpt 80.0", "own 40.0", "cut", "ROUGE-L", "0.50 0.25"):
        assert part in text
    assert page.text("left-marks").count("cut") == 0
    assert "refused" not in text
    assert page.text("right-marks").count("cut") == 1
    page.open([row._replace(finish_reason="refused", base_finish_reason="stop")])
    assert page.text("left-marks").startswith("refused ")
    assert page.text("right-marks") == "own 40.0"


def test_buttons_do_what_keys_do(page: Page) -> None:
    page.open(make_rows(3))
    page.find("next").click()
    page.driver.find_element("css selector", "#marks button[value='3']").click()
    page.find("unreviewed").click()
    assert page.text("row") == "2"
    page.find("previous").click()
    assert page.text("row") == "1"
    page.driver.find_elements("css selector", "#list button")[0].click()
    assert page.text("row") == "0"
    assert page.review()["scores"] == {"1": {"score": 3, "note": ""}}
    for button in page.driver.find_elements("css selector", "button"):
        assert button.get_attribute("aria-label") or button.get_property("textContent")


def test_a_note_is_typed_without_setting_off_shortcuts(page: Page) -> None:
    page.open(make_rows(3))
    page.press("n", "no 1j2k?bus/")
    assert page.text("row") == "0"
    page.press(Keys.ESCAPE, "j", "n", "x", Keys.BACKSPACE, Keys.ESCAPE, "j")
    assert page.text("row") == "2"
    assert page.review()["scores"] == {"0": {"score": None, "note": "no 1j2k?bus/"}}
    page.press("/", "j1")
    assert page.find("search").get_property("value") == "j1"
    page.press(Keys.ESCAPE)
    assert len(page.review()["scores"]) == 1


def test_page_keys_scroll_the_row_and_another_row_begins_at_its_top(page: Page) -> None:
    page.open([make_response(id=id, reference="line\n" * 99, response="line\n" * 99) for id in "ab"])
    at_end = (
        "const it = document.getElementById('reading'); return it.scrollTop + it.clientHeight >= it.scrollHeight - 1"
    )
    assert not page.driver.execute_script(at_end)
    page.press("n", "x", Keys.ESCAPE, Keys.PAGE_DOWN)
    page.wait(lambda: page.driver.execute_script(at_end))
    page.press("j")
    assert page.driver.execute_script("return document.getElementById('reading').scrollTop") == 0
    assert page.text("row") == "b"


def test_help_opens_and_closes(page: Page) -> None:
    page.open(make_rows(2))
    page.press("?")
    assert page.find("help").is_displayed()
    page.press("j", "1")  # belongs to the help now
    page.press("?")
    assert not page.find("help").is_displayed()
    assert page.text("row") == "0"
    assert page.review()["scores"] == {}


FILTERS = [
    ({"category": "numbers"}, ["1", "4"]),
    ({"category": "no category"}, ["2", "5"]),
    ({"band": "below 25"}, ["0"]),
    ({"band": "25 to 50"}, ["1"]),
    ({"band": "50 to 75"}, ["2"]),
    ({"band": "75 and above"}, ["3", "4"]),
    ({"band": "invalid"}, ["5"]),
    ({"disagreement": "judges differ by more than 25"}, ["1", "4"]),
    ({"disagreement": "mine differs from the judge's by 2 or more"}, ["4"]),
    ({"reviewed": "reviewed"}, ["0", "4"]),
    ({"reviewed": "not yet", "category": "colours"}, ["3"]),
    ({"judge": "gpt", "band": "50 to 75"}, ["1", "2", "4", "5"]),
    ({"search": "tuned 3"}, ["3"]),
    ({"search": "EXPECTED"}, ["0", "1", "2", "3", "4", "5"]),
    ({"search": "nowhere"}, []),
]


def shows(page: Page, ids: list[str]) -> bool:
    return page.ids() == ids


def test_filters(page: Page) -> None:
    page.open(make_rows(6), [24.9, 25.0, 50.0, 75.0, 100.0, None], others={"gpt": [0.0, 51.0, 60.0, 99.0, 74.0, 50.0]})
    page.choose("order", "as in the file")
    page.press("2", "j", "j", "j", "j", "3")
    for chosen, wanted in FILTERS:
        for field, value in chosen.items():
            if field == "search":
                page.find("search").send_keys(value)
                page.wait(partial(shows, page, wanted))  # it waits for the typing to end
            else:
                page.choose(field, value)
        assert page.ids() == wanted, chosen
        assert page.text("count") == f"{len(wanted)} of 6 rows"
        assert page.find("none").is_displayed() == (not wanted)
        page.driver.execute_script("document.getElementById('all').click()")
        page.choose("judge", "own")
    assert len(page.ids()) == 6


def test_orders(page: Page) -> None:
    page.open(make_rows(4), [50.0, None, 10.0, 90.0], others={"gpt": [100.0, 0.0, 10.0, 80.0]})
    wanted = {
        "worst first": "1203",
        "best first": "3021",
        "judges differ most": "0312",
        "lost most against the base model": "1203",
        "category": "2031",
        "as in the file": "0123",
    }
    assert "".join(page.ids()) == wanted["worst first"]
    for order, ids in wanted.items():
        page.choose("order", order)
        assert "".join(page.ids()) == ids, order


def test_blind_mode_hides_what_tells_the_models_apart(page: Page) -> None:
    page.open(make_rows(8), others={"gpt": [1.0] * 8}, summary=SUMMARY | {"judge_reliable": 0})
    page.press("1", "b")
    assert page.find("blind").get_attribute("aria-pressed") == "true"
    shown = page.driver.find_element("tag name", "body").text.lower()
    for tell in ("tuned model", "base", "cut", "61.2", "0.91", "own", "gpt", "rouge", "invalid", "relied"):
        assert tell not in shown, tell
    parts = [page.find(f"{side}-part").get_attribute("class") for side in ("left", "right")]
    assert parts[0] == parts[1]
    page.press("b")
    assert "Fine-tuned model".upper() in page.driver.find_element("tag name", "body").text.upper()
    assert page.text("row") == "0"


def test_votes_find_the_column_that_won(page: Page) -> None:
    rows = make_rows(24)
    page.open(rows)
    page.driver.execute_script("localStorage.setItem(KEY + ':seed', 'one')")
    page.open(rows, fresh=False)
    page.press("b")
    assert page.ids() != [row.id for row in rows]  # worst first would tell
    wanted, orders = {}, set()
    keys = ["1", "2", Keys.ARROW_LEFT, Keys.ARROW_RIGHT, "t", Keys.ARROW_DOWN]
    for step in range(24):
        key, id, left = keys[step % 6], page.text("row"), page.text("left")
        tuned_is_left = left == f"Tuned {id}."
        assert {left, page.text("right")} == {f"Tuned {id}.", f"Plain {id}."}
        orders.add(tuned_is_left)
        chose_left = step % 6 in (0, 2)
        wanted[id] = "tie" if step % 6 >= 4 else "response" if chose_left == tuned_is_left else "base_response"
        page.press(key)
    assert orders == {True, False}
    assert page.review()["votes"] == wanted
    assert page.text("done") == "24 of 24 voted"
    page.press("0")  # takes back the last vote, where one still stands
    assert len(page.review()["votes"]) == 23
    assert page.review()["scores"] == {}


def test_sides_stay_for_one_reviewer_and_differ_for_another(page: Page) -> None:
    sides = "return rows.map(row => sides(row)[0] === 'response')"
    page.open(make_rows(64))
    first = page.driver.execute_script(sides)
    assert 12 < sum(first) < 52
    page.open(make_rows(64), fresh=False)
    assert page.driver.execute_script(sides) == first
    page.open(make_rows(64))
    assert page.driver.execute_script(sides) != first


def test_a_saved_file_is_what_the_importer_reads(page: Page) -> None:
    note = 'Line "one"\n\u00e9 \U0001f600 \\ </script> \u2028'
    page.open([row._replace(id=id) for row, id in zip(make_rows(3), ("b", "10", "9"), strict=True)])
    page.press("s")
    assert page.text("notice") == "There is nothing to save yet."
    page.find("reviewer").send_keys("Ada L./x", Keys.ENTER)
    page.press("4", "j", "2", "j", "b")
    page.driver.execute_script("turn(false); say({ note: arguments[0] }); changed()", note)
    page.press("b", "t", "b", "s")
    said = page.review()
    assert page.saved("review-Ada-L.-x.json") == json.dumps(said, indent=2, ensure_ascii=False) + "\n"
    assert list(said) == ["format", "responses", "reviewer", "scores", "votes"]
    assert {name: said[name] for name in ("format", "responses", "reviewer")} == {
        "format": "onset-review-1", "responses": "ab" * 32, "reviewer": "Ada L./x",
    }  # fmt: skip
    assert list(said["scores"]) == ["10", "9", "b"]  # sorted as text
    assert said["scores"] == {
        "b": {"score": 4, "note": ""}, "10": {"score": 2, "note": ""}, "9": {"score": None, "note": note},
    }  # fmt: skip
    assert list(said["votes"].values()) == ["tie"]


def test_a_review_without_a_name_is_saved_too(page: Page) -> None:
    page.open(make_rows(1))
    page.press("5")
    page.find("save").click()
    assert json.loads(page.saved("review-reviews.json"))["scores"] == {"0": {"score": 5, "note": ""}}


def make_review(**changed: Any) -> str:
    return json.dumps({
        "format": "onset-review-1", "responses": "ab" * 32, "reviewer": "Ada",
        "scores": {"1": {"score": 3, "note": "why"}}, "votes": {"0": "base_response"},
    } | changed)  # fmt: skip


def test_load_reads_a_saved_file(page: Page) -> None:
    page.open(make_rows(2))
    assert page.load(make_review()).startswith("Loaded 1 reviewed rows and 1 votes")
    assert page.review() == json.loads(make_review())
    assert page.find("reviewer").get_property("value") == "Ada"
    page.find("file").send_keys(str(page.folder / "given.json"))  # over what is there: asks
    WebDriverWait(page.driver, 5).until(alert_is_present()).dismiss()
    assert page.review() == json.loads(make_review())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not a review"),
        (make_review(format="onset-review-2"), "not a review (no format onset-review-1)"),
        (make_review(responses="cd" * 32), "a review of other responses (cdcdcdcdcdcd, here abababababab)"),
        (make_review(scores={"1": {"score": 6, "note": ""}}), "row 1: a score is 1 to 5"),
        (make_review(scores={"1": {"score": "3", "note": ""}}), "row 1: a score is 1 to 5"),
        (make_review(scores={"1": {"score": 3}}), "row 1: a score is 1 to 5"),
        (make_review(scores={"7": {"score": 3, "note": ""}}), "row 7 is not on this page"),
        (make_review(votes={"1": "A"}), "row 1: a vote is one of"),
        (make_review(votes=None), "votes are missing"),
    ],
)
def test_load_refuses_what_is_no_review_of_these_rows(page: Page, text: str, said: str) -> None:
    page.open(make_rows(2))
    page.press("4")
    notice = page.load(text)
    assert said in notice
    assert notice.endswith("Nothing was loaded.")
    assert page.review()["scores"] == {"0": {"score": 4, "note": ""}}


def test_a_reload_restores_everything(page: Page) -> None:
    page.open(make_rows(3))
    page.find("reviewer").send_keys("Ada", Keys.ENTER)
    page.press("4", "n", "why", Keys.ESCAPE, "b", "t", "b", "j", "n", "typed last")
    before = page.review()
    assert before["scores"]["1"] == {"score": None, "note": "typed last"}
    page.open(make_rows(3), fresh=False)
    assert page.review() == before
    assert page.text("row") == "1"
    page.open(make_rows(3), sha="cd" * 32, fresh=False)  # another experiment's page
    page.press("5", "5")
    assert page.review() == {
        "format": "onset-review-1", "responses": "cd" * 32, "reviewer": "", "scores": {}, "votes": {},
    }  # fmt: skip
    page.open(make_rows(3), fresh=False)
    assert page.review() == before


def test_works_where_the_browser_keeps_nothing(page: Page) -> None:
    script = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('', 'SecurityError'); } })"
    page.open(make_rows(2))
    added = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    try:
        page.open(make_rows(2), fresh=False)
        assert "keeps nothing" in page.find("notice").text
        page.press("4", "j", "n", "x", Keys.ESCAPE, "b", "t", "s")
        assert len(json.loads(page.saved("review-reviews.json"))["scores"]) == 2
        page.driver.execute_script("take(parseReview(reviewText())); unsaved = false")
    finally:
        page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_hostile_answers_stay_text(page: Page) -> None:
    count = "return ['body *', 'a, img, iframe, svg'].map(what => document.querySelectorAll(what).length)"
    page.open([make_response(id=str(at), input="x") for at in range(len(HOSTILE))], summary=SUMMARY | {"note": "x"})
    benign = page.driver.execute_script(count)
    fields = ("category", "instruction", "input", "reference", "response", "base_response")
    rows = [make_response(id=str(at))._replace(**dict.fromkeys(fields, text)) for at, text in enumerate(HOSTILE)]
    new_requests(page.driver)
    page.open(rows, others={HOSTILE[0]: [None] * len(rows)}, summary=SUMMARY | {"note": HOSTILE[0]}, fresh=False)
    for key in ("j", "b", "j"):
        for _ in rows:
            for place in ("instruction", "input", "reference", "left", "right"):
                assert page.text(place) == HOSTILE[int(page.text("row"))]
            page.press(key if key == "j" else "t")
        page.press("b")
    page.press("n", HOSTILE[0], Keys.ESCAPE, "k", "j", "/", HOSTILE[1], Keys.ESCAPE)
    assert page.driver.execute_script("return window.hacked") is None
    page.open(rows, summary=SUMMARY | {"note": HOSTILE[0]})
    # One option a category is all that differs.
    assert page.driver.execute_script(count) == [benign[0] + len(HOSTILE) - 1, 0]
    assert {url.split(":")[0] for url in new_requests(page.driver)} <= {"file", "about"}


def test_a_script_that_got_in_would_not_run(browser: Page) -> None:
    browser.open(make_rows(1))
    # Later, since a browser that is remote-controlled allows eval for as long as it is told what to do.
    browser.driver.execute_script("""
        setTimeout(() => { for (const way of [
            () => { document.body.innerHTML += "<img src=x onerror='window.hacked = 1'>"; },
            () => { const s = document.createElement("script"); s.append("window.hacked = 2");
                    document.body.append(s); },
            () => { const s = document.createElement("script"); s.src = "data:text/javascript,window.hacked=3";
                    document.body.append(s); },
            () => { document.body.setAttribute("onclick", "window.hacked = 4"); document.body.click(); },
            () => { window.eval("window.hacked = 5"); },
            () => { const a = document.createElement("a"); a.href = "javascript:void(window.hacked = 6)"; a.click(); },
        ]) try { way(); } catch { } window.tried = true; }, 0);
    """)
    browser.wait(lambda: browser.driver.execute_script("return window.tried"))
    time.sleep(0.1)
    assert browser.driver.execute_script("return window.hacked") is None
    assert new_log(browser.driver)  # the browser says what it has refused


def test_two_thousand_rows_are_quick(page: Page) -> None:
    page.open(make_rows(2000))
    spent = page.driver.execute_script("""
        const time = work => { const from = performance.now(); work(); document.body.offsetHeight;
                               return performance.now() - from; };
        return [time(() => refresh()), time(() => { for (let i = 0; i < 20; i++) { go(i * 90); mark(3); } }) / 20];
    """)
    assert spent[0] < 1500  # ms; about 60 on an idle machine
    assert spent[1] < 150  # about 5


@pytest.mark.parametrize("width", [390, 1280])
def test_a_very_long_answer_does_not_break_the_layout(page: Page, width: int) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        long = make_response("e" * 9000, instruction="i " * 5000, input="x" * 9000, category="c" * 200)
        page.open([long._replace(response="w" * 100_000, base_response="line\n" * 20_000)], others={"j" * 80: [1.0]})
        for mode in ("read", "blind"):
            page.find(mode).click()
            measured = page.driver.execute_script(
                "return [document.documentElement.scrollWidth, document.getElementById('card').scrollWidth,"
                " ...[...document.querySelectorAll('#card .text')].map(part => part.clientHeight)]"
            )
            assert max(measured[:2]) <= width
            assert max(measured[2:]) <= 844 * 0.61
            assert page.find("vote-a" if mode == "blind" else "note").is_displayed()
        assert page.find("right").get_attribute("tabindex") == "0"  # can be scrolled by keyboard
        page.find("read").click()
        drawn = "const from = performance.now(); go(0); document.body.offsetHeight; return performance.now() - from"
        assert page.driver.execute_script(drawn) < 3000  # ms; about 400, or 5000 where scroll bars come and go
    finally:
        page.driver.get("about:blank")
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_header_says_how_far_to_trust_the_score(page: Page) -> None:
    page.open(make_rows(2), [None, 3.0], others={"gpt": [None, None]})
    said = page.find("figures").text.replace("\n", " ")
    for part in ("Score 61.3 50.0 to 70.0", "Base model 40.0", "Win rate 75 % 50 to 90", "Judge's AUC 0.91"):
        assert part in said
    assert "Invalid verdicts 3 own 1, gpt 2" in said
    assert not page.find("warning").is_displayed()
    page.open(make_rows(2), summary={"judge_auc": 0.6, "judge_reliable": 0})
    assert page.find("warning").text == "This judge cannot be relied on: read the answers."
    assert "Score none" in page.find("figures").text.replace("\n", " ")
