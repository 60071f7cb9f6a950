"""Where a result was made: the same words for the same machine, and what differs on another."""

import json
from pathlib import Path

from stages.pipeline.environment import FILE, LIBRARIES, changed, in_words, read_environment, this_environment


def test_it_is_the_same_twice_and_names_what_is_installed() -> None:
    here = this_environment()
    assert here == this_environment()
    assert set(LIBRARIES) <= set(here)
    assert json.loads(json.dumps(here)) == here
    assert all(here["cpu"].split())


def test_only_what_both_tell_is_compared() -> None:
    assert changed({"torch": "1", "python": "3.11", "threads": 2}, {"torch": "2", "python": "3.11", "cpu": "x"}) == {
        "torch": ("1", "2")
    }
    assert in_words({"gpus": ([], ["A100", "A100"]), "torch": ("1", "2")}) == (
        "gpus none, here A100, A100; torch 1, here 2"
    )


def test_a_finished_training_says_where_it_was_made(finished: Path) -> None:
    made = read_environment(finished / "data/checkpoint")
    assert changed(made, this_environment()) == {}
    assert (made["device"], made["processes"], made["deterministic"]) == ("cpu", 1, True)
    assert made["precision"] in ("bfloat16", "float32")


def test_a_checkpoint_from_before_says_nothing(tmp_path: Path) -> None:
    assert read_environment(tmp_path) == {}
    (tmp_path / FILE).write_text('{"torch": "0.1"}')
    assert changed(read_environment(tmp_path), this_environment())["torch"][0] == "0.1"
