"""A real browser without a window."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

HOSTILE = (
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'><svg onload=window.hacked=3>",
    "<a href='javascript:window.hacked=4' autofocus onfocus=window.hacked=5>x</a><iframe src='data:text/html,x'>",
    "javascript:window.hacked=6 <!--<script> ]]> --!> &lt;b&gt; \\u003c __DATA__ __POLICY__",
    "\u2028\u2029\u202e\u0000\ufeff\r\n\U0001f600 \"quoted\" 'single' `${window.hacked = 7}` constructor __proto__",
    '"><link rel=stylesheet href=//example.invalid/x.css><style>*{display:none}</style><base href=//example.invalid>',
)
"""Texts that are out to break a page."""

FLAGS = (
    "headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1280,900", "no-first-run",
    "disable-background-networking", "disable-component-update", "disable-backgrounding-occluded-windows",
    "disable-renderer-backgrounding",
)  # fmt: skip


@contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """Chromium, which saves files into `folder`; where there is none, a test is skipped, and fails in CI."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(found) and not os.environ.get("CI"):
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    assert all(found), "chromium and chromedriver are missing; .ci/run installs them"
    options = webdriver.ChromeOptions()
    options.binary_location = str(found[0])
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(found[1])))
    try:
        yield driver
    finally:
        driver.quit()


def new_log(driver: webdriver.Chrome, kind: str = "browser") -> list[dict[str, Any]]:
    """What the browser has logged since it was last asked: its console, or `performance`."""
    return list(driver.get_log(kind))  # type: ignore[no-untyped-call]


def new_requests(driver: webdriver.Chrome) -> list[str]:
    """Addresses that were asked for since it was last asked."""
    messages = [json.loads(entry["message"])["message"] for entry in new_log(driver, "performance")]
    return [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]


def check_self_contained(driver: webdriver.Chrome, page: Path, width: int) -> None:
    """Opened in a window of this width, nothing on the page runs, nothing else is asked for, and nothing hangs out."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    new_log(driver), new_requests(driver)
    driver.get(page.as_uri())
    assert new_log(driver) == []
    assert set(new_requests(driver)) == {page.as_uri()}
    assert driver.execute_script("return window.hacked ?? null") is None
    tags = driver.execute_script("return [...new Set([...document.querySelectorAll('*')].map(e => e.tagName))]")
    assert not set(tags) & {"SCRIPT", "IMG", "IFRAME", "LINK", "BASE", "OBJECT"}
    wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert driver.execute_script(wide), "the page is wider than the window"
