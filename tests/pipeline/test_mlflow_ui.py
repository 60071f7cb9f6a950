"""MLflow's pages of our runs, in a real browser without a window, from a server as `make ui` starts it."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import chdir, suppress
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from stages.experiments.sync import sync
from stages.pipeline.tracking import log_judge
from stages.pipeline.tracking_files import Files
from tests.browser import chromium
from tests.pipeline.projects import set_parameter
from tests.pipeline.stores import make_store, models_of, runs_of


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, copy_of_finished: Callable[[Path], Path]) -> Iterator[Path]:
    """A store with one training that was judged twice."""
    folder = copy_of_finished(tmp_path_factory.mktemp("ui") / "project")
    make_store(folder)
    before = dict(os.environ)
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        os.environ.pop(name, None)
    with chdir(folder):
        assert dict(sync(["workspace"])) == {"workspace": "written"}
        set_parameter(folder, "judge.confidence", 0.5)
        log_judge(Files())
    yield folder
    mlflow.set_tracking_uri("")
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def address(project: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with subprocess.Popen(
        [*command, "--backend-store-uri", f"sqlite:///{project}/mlflow.db"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, 15)


def wait_for(url: str) -> None:
    for _ in range(240):
        with suppress(OSError), urllib.request.urlopen(url):
            return
        time.sleep(0.25)
    raise AssertionError(f"{url} never answers")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("saved")) as driver:
        driver.set_window_size(1500, 5000)  # charts out of sight are not drawn
        yield driver


def shows(browser: webdriver.Chrome, url: str, *texts: str, frame: bool = False) -> None:
    """Wait until a page has these texts, or the frame in it."""

    def has_all(driver: webdriver.Chrome) -> bool:
        driver.switch_to.default_content()
        if frame:
            frames = driver.find_elements("tag name", "iframe")
            if not frames:
                return False
            driver.switch_to.frame(frames[0])
        seen = driver.find_element("tag name", "body").text
        return all(text in seen for text in texts)

    browser.switch_to.default_content()
    browser.get("about:blank")
    browser.get(url)
    WebDriverWait(browser, 60, 0.1).until(has_all, f"{url}: {texts}")


def name_of(run: Run) -> str:
    return str(run.info.run_name)


def test_runs_can_be_looked_at_and_compared(browser: webdriver.Chrome, address: str, project: Path) -> None:
    store = f"sqlite:///{project}/mlflow.db"
    (training,), (one, other), (model,) = runs_of(store, "finetune"), runs_of(store, "judge"), models_of(store)
    experiment = f"{address}/#/experiments/{training.info.experiment_id}"
    runs = f"{experiment}/runs"
    shows(browser, runs, name_of(training), "train (")
    view = f"{runs}?workflowType=machine_learning&viewStateShareKey"
    shows(browser, f"{view}=results", name_of(one), name_of(other), "best_validation_loss", "2 matching runs")
    shows(browser, f"{view}=curves&compareRunsMode=CHART", "Training", "validation_loss vs train_loss vs onset")
    shows(browser, runs, "Loss curves with the onset")
    assert browser.find_element("link text", "Results by score").get_attribute("href") == f"{view}=results"
    page = f"{runs}/{other.info.run_id}"
    shows(browser, page, name_of(other), name_of(training), "judge.confidence", "Description", "test (", "git.commit")
    compared = f"[%22{one.info.run_id}%22,%22{other.info.run_id}%22]"
    compare = f"{address}/#/compare-runs?runs={compared}&experiments=[%22{training.info.experiment_id}%22]"
    shows(browser, compare, "Comparing 2 Runs", name_of(one), name_of(other), "judge.confidence", "0.95", "0.5")
    shows(browser, f"{runs}/{training.info.run_id}/model-metrics", "validation_loss", "train_loss")
    shows(browser, f"{page}/artifacts/review.html", "Review of answers", frame=True)
    shows(browser, f"{page}/artifacts/scores.json", "instruction", "category", "View as table")
    shows(browser, f"{runs}/{training.info.run_id}/artifacts/losses.png", "losses.png")
    WebDriverWait(browser, 60, 0.1).until(lambda driver: driver.find_elements("css selector", "img[alt='losses.png']"))
    shows(browser, f"{experiment}/models/{model.model_id}", model.name, "mlflow models serve", "score")
