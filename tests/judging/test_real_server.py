"""Judge through a real OpenAI-compatible server: `transformers serve` with a model of this machine.

By hand, with a model that says something (`data/base_model`) and rows of data/responses.parquet:
`python -m tests.judging.test_real_server data/base_model data/responses.parquet 10 40` (rows, tokens)
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.judging.responses import Response, read_responses
from stages.model.endpoint import Pace
from stages.pipeline.errors import UserError
from tests.judging.endpoint_process import make_judge, rows_and_answers

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
PACE = Pace(concurrency=2, requests_per_minute=0, timeout=120, retries=1)
SERVE = "from transformers.cli.transformers import main; main()"


@contextmanager
def real_server(model: Path, log: Path) -> Iterator[str]:
    """URL of a server that is ready; it ends with the block."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", SERVE, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with opener.open(url, timeout=2):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"not ready: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def chatty(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    folder = tmp_path_factory.mktemp("served") / "model"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHATML}))
    return folder


def test_three_rows_are_judged_through_a_real_server(
    chatty: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "calls.db"
    rows, answers = rows_and_answers(3)
    with real_server(chatty, tmp_path / "log") as url:
        judge = make_judge(url, path, pace=PACE, model=str(chatty), max_tokens=8)
        verdicts = judge.grade(rows, answers)
        pairs = judge.compare(rows[:1], ["one"], ["other"])
        with pytest.raises(UserError, match="no-such-model"):
            make_judge(url, path, pace=PACE, model="no-such-model").grade(rows[:1], answers[:1])
        asked = (tmp_path / "log").read_text().count("POST /v1/chat/completions")
    said = capfd.readouterr().err
    # a random model says nothing that can be read: asked once more each, then counted
    assert [verdict.score for verdict in verdicts] == [None] * 3
    assert all(verdict.reply for verdict in verdicts)
    assert "gpt: 3 grades, 3 of them invalid: 6 calls made, 0 answered from the store" in said
    assert pairs[0].winner is None
    usage = judge.usage()
    assert usage.calls == 6 + 4
    assert usage.prompt_tokens > 100 * usage.calls
    assert 0 < usage.completion_tokens <= 8 * usage.calls
    assert asked == usage.calls + 2  # the wrong model was refused with logprobs and without
    again = make_judge(url, path, pace=PACE, model=str(chatty), max_tokens=8)  # the server is gone
    assert again.grade(rows, answers) == verdicts
    assert again.compare(rows[:1], ["one"], ["other"]) == pairs
    assert again.usage() == usage


def by_hand(model: Path, responses: Path, count: int, max_tokens: int, path: Path) -> None:
    rows: list[Response] = read_responses(responses)[0][:count]
    with real_server(model.resolve(), path / "log") as url:
        for scale in ("rubric", "percent"):
            judge = make_judge(url, path / "calls.db", scale, PACE, model=str(model.resolve()), max_tokens=max_tokens)
            for row in rows:
                for answer in (row.reference, row.response):
                    verdict = judge.grade([row], [answer])[0]
                    print(scale, row.id, answer == row.reference, verdict.score, repr(verdict.reply[:160]), flush=True)
        for row in rows:
            pair = judge.compare([row], [row.response], [row.base_response])[0]
            print("pair", pair.forward, pair.backward, pair.winner, repr(pair.reply[:300]), flush=True)
        print(judge.usage())


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        by_hand(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(folder))
