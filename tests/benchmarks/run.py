"""Time our stages against others on this machine. `make bench` runs these."""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from stages.pipeline.progress import say
from tests.benchmarks import encoding
from tests.benchmarks.report import RESULTS, note, save, show, spread
from tests.benchmarks.trials import (
    BASE_MODEL,
    STAGES,
    GeneratingTrial,
    MmluTrial,
    StageTrial,
    TrainingTrial,
    TrlTrial,
    answer_by,
    lay_out,
    make_rows,
    matrix_rates,
    measure_mmlu,
    run_stage,
    run_trl,
    stage_tokens,
    train_ours,
    train_peer,
)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Seed = Annotated[int, typer.Option(help="Of the rows.")]
TrlRows = Literal["prompt-completion", "text"]
StageTrials = dict[str, StageTrial]


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards: a million rows take several gigabytes."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS) as folder:
        yield Path(folder)


def run_stages(folder: Path, rows: Path, count: int) -> StageTrials:
    """The three stages in a new folder."""
    lay_out(folder, rows)
    trials = {}
    for stage in STAGES:
        trials[stage] = run_stage(stage, folder, count)
        say(f"  {title(stage)}: {trials[stage].seconds:.2f} s, {trials[stage].peak_mb:.0f} MB")
    return trials


def title(stage: str) -> str:
    return stage.replace("_", "-")


# ---- prepare


@app.command()
def prepare(
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 52_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often, ours and TRL's in turn.")] = 3,
    seed: Seed = 1,
    trl_rows: Annotated[TrlRows, typer.Option(help="TRL's dataset type; with text it makes no completion mask.")] = (
        "prompt-completion"
    ),
) -> None:
    """The three stages against TRL on the same rows."""
    ours: list[StageTrials] = []
    peers: list[TrlTrial] = []
    with scratch() as folder:
        say(f"prepare: making {rows:,} rows")
        make_rows(folder / "rows.jsonl", rows, seed)
        for turn in range(rounds):
            say(f"prepare: round {turn + 1} of {rounds}")
            ours.append(run_stages(folder / f"ours-{turn}", folder / "rows.jsonl", rows))
            peers.append(run_trl(folder / "rows.jsonl", folder / f"trl-{turn}", trl_rows))
            say(f"  TRL: {peers[-1].seconds:.2f} s, {peers[-1].peak_mb:.0f} MB")
        tokens = stage_tokens(folder / "ours-0")
    _show_prepare(ours, peers, tokens, trl_rows)
    trials = [{stage: trial._asdict() for stage, trial in turn.items()} for turn in ours]
    peer_trials = {"trl_rows": trl_rows, "trl": [peer._asdict() for peer in peers]}
    path = save("prepare", rows=rows, seed=seed, tokens=tokens, ours=trials, **peer_trials)
    say(f"prepare: every figure is in {path}")


def _show_prepare(ours: Sequence[StageTrials], peers: Sequence[TrlTrial], tokens: int, trl_rows: str) -> None:
    lines = [_line(title(stage), [turn[stage] for turn in ours]) for stage in STAGES]
    totals = [_together(turn) for turn in ours]
    trl = f"TRL {peers[0].version}, {trl_rows}"
    columns = ("", "seconds", "rows/s", "peak MB")
    show(
        f"Preparing {peers[0].rows:,} rows, in turn, rounds: {len(ours)}; median (lowest to highest)",
        columns,
        [*lines, _line("the three together", totals), _line(trl, peers)],
    )
    rates = [turn[STAGES[-1]].rows_per_second / peer.rows_per_second for turn, peer in zip(ours, peers, strict=True)]
    times = [total.seconds / peer.seconds for total, peer in zip(totals, peers, strict=True)]
    whole = statistics.median(peer.process_seconds for peer in peers)
    show(
        "Against TRL, round by round",
        ("", "ratio"),
        [
            ("tokenize-and-collate, rows/s over TRL's", spread(rates)),
            ("the three together, seconds over TRL's", spread(times)),
        ],
    )
    note(
        "Stages are whole processes, with Python's start and reading and writing files; rows/s counts the rows that a",
        "stage was given. TRL's time is that of making SFTTrainer alone (tokenizing, labels, packing); with imports,",
        f"reading the rows and making the model its process took {whole:.1f} s. It looks for no duplicates and splits",
        f"nothing. Tokens: {tokens:,} ours, {peers[0].tokens:,} TRL's, which keeps repeated rows.",
        "Peak MB (2**20 bytes) are those of the whole process and the processes it starts, the highest of all rounds.",
    )


def _line(name: str, trials: Sequence[StageTrial] | Sequence[TrlTrial]) -> tuple[str, str, str, str]:
    seconds = spread([trial.seconds for trial in trials])
    rates = spread([trial.rows_per_second for trial in trials], 0)
    return name, seconds, rates, f"{max(trial.peak_mb for trial in trials):,.0f}"


def _together(turn: StageTrials) -> StageTrial:
    seconds = sum(trial.seconds for trial in turn.values())
    return StageTrial(seconds, turn[STAGES[0]].rows, max(trial.peak_mb for trial in turn.values()))


# ---- scale


@app.command()
def scale(
    sizes: Annotated[str, typer.Option(help="Rows, small to large, between commas.")] = "10000,100000,1000000",
    seed: Seed = 1,
) -> None:
    """The three stages by number of rows: does time grow in step with rows?"""
    counts = sorted({int(size) for size in sizes.split(",")})
    trials: dict[int, StageTrials] = {}
    for count in counts:
        with scratch() as folder:
            say(f"scale: making {count:,} rows")
            make_rows(folder / "rows.jsonl", count, seed)
            trials[count] = run_stages(folder / "ours", folder / "rows.jsonl", count)
    _show_scale(counts, trials)
    records = {count: {stage: trial._asdict() for stage, trial in trials[count].items()} for count in counts}
    say(f"scale: every figure is in {save('scale', seed=seed, sizes=records)}")


def _show_scale(counts: Sequence[int], trials: dict[int, StageTrials]) -> None:
    lines = []
    for stage in STAGES:
        for position, count in enumerate(counts):
            trial = trials[count][stage]
            per_row = f"{trial.seconds / count * 1e6:,.1f}"
            steps = [
                f"{trial.seconds / (trials[smaller][stage].seconds * count / smaller):.2f}" if position else ""
                for smaller in (counts[position - 1], counts[0])
            ]
            name = "" if position else title(stage)
            lines.append((name, f"{count:,}", f"{trial.seconds:,.2f}", per_row, *steps, f"{trial.peak_mb:,.0f}"))
    columns = ("", "rows", "seconds", "µs/row", "over linear: size before", "smallest size", "peak MB")
    show("By number of rows", columns, lines)
    note(
        "Over linear: seconds over those of the smaller size times the ratio of rows; 1 is linear, above 1 is worse.",
        "Seconds are whole processes: Python's start, which is constant, flatters the figures against a small size.",
    )


# ---- tokenizer


@app.command()
def tokenizer(
    rows: Annotated[int, typer.Option(min=1, help="How many rows a round.")] = 10_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often, in turn.")] = 5,
    seed: Seed = 1,
) -> None:
    """Our tokenizer against the model's own, on one core."""
    encoding.use_one_core()
    say(f"tokenizer: {rounds} rounds of {rows:,} rows")
    trials = encoding.trials(BASE_MODEL, rows, rounds, seed)
    peers = (encoding.OWN, encoding.OWN_BATCHED)
    lines = []
    for way in trials[0]:
        figures = [trial[way] for trial in trials]
        ratios = [spread([trial[peer][0] / trial[way][0] for trial in trials]) for peer in peers]
        rates = spread([rows / seconds for seconds, _ in figures], 0)
        lines.append((way, rates, spread([tokens / seconds / 1e6 for seconds, tokens in figures]), *ratios))
    show(
        f"Encoding {rows:,} rows on one core, in turn, rounds: {rounds}; median (lowest to highest)",
        ("", "rows/s", "million tokens/s", "speed over its encode", "over its encode_batch"),
        lines,
    )
    note(f"All ways gave the same tokens. Batches are of {encoding.BATCH:,}. Every round has new rows and tokenizers.")
    say(f"tokenizer: every figure is in {save('tokenizer', rows=rows, seed=seed, trials=trials)}")


# ---- train


WAYS = {
    "ours, bf16": "bf16",
    "ours, fp32": "fp32",
    "TRL, packed bf16 (its best)": "trl-packed-bf16",
    "TRL, packed fp32": "trl-packed-fp32",
    "TRL, default settings": "trl-default",
    "textbook loop, fp32": "textbook",
}
"""Name in the table, and what `train_ours` or `train_peer` is asked for."""


@app.command()
def train(
    rounds: Annotated[int, typer.Option(min=1, help="How often, each way in turn.")] = 3,
    steps: Annotated[int, typer.Option(min=4, help="Steps of the others; ours trains an epoch.")] = 6,
) -> None:
    """Training the default model on the shipped data, against TRL and the textbook."""
    trials: dict[str, list[TrainingTrial]] = {name: [] for name in WAYS}
    rates: list[dict[str, float]] = []
    for turn in range(rounds):
        say(f"train: round {turn + 1} of {rounds}")
        rates.append(matrix_rates())
        for name, way in WAYS.items():
            with scratch() as folder:
                ours = way in ("bf16", "fp32")
                trials[name].append(train_ours(folder / "ours", way) if ours else train_peer(way, steps, folder))
            say(f"  {name}: {trials[name][-1].tokens_per_second:.0f} tokens/s, {trials[name][-1].peak_mb:.0f} MB")
    _show_training(trials, rates)
    records = {name: [trial._asdict() for trial in ways] for name, ways in trials.items()}
    say(f"train: every figure is in {save('train', steps=steps, rates=rates, trials=records)}")


def _show_training(trials: dict[str, list[TrainingTrial]], rates: Sequence[dict[str, float]]) -> None:
    names = list(WAYS)
    rows = []
    for name, ways in trials.items():
        speeds = [trial.tokens_per_second for trial in ways]
        precision = "fp32" if "fp32" in name else "bf16"
        limits = [rate[precision] / (6 * DEFAULT_PARAMETERS) for rate in rates]
        against = [
            [ours.tokens_per_second / trial.tokens_per_second for ours, trial in zip(trials[own], ways, strict=True)]
            for own in names[:2]
        ]
        reached = [100 * speed / limit for speed, limit in zip(speeds, limits, strict=True)]
        peak = f"{max(trial.peak_mb for trial in ways):,.0f}"
        rows.append((name, spread(speeds, 0), *map(spread, against), spread(reached, 0), peak))
    show(
        f"Training SmolLM2-135M on the shipped data, in turn, rounds: {len(rates)}; median (lowest to highest)",
        ("", "tokens/s", "ours bf16 is x times", "ours fp32 is x times", "% of matrix rate", "peak MB"),
        rows,
    )
    note(
        "Tokens without padding; first steps, in which kernels are compiled, and validation are not timed. The matrix",
        f"rate is that of 4096-wide squares, bf16 {spread([rate['bf16'] / 1e9 for rate in rates], 0)} and fp32 "
        f"{spread([rate['fp32'] / 1e9 for rate in rates], 0)} GFLOP/s, and the limit set by it 6 FLOP a parameter and",
        "token. TRL's packed bf16 has its weights in bf16 alone, ours float32 masters. Peaks are whole processes.",
    )


DEFAULT_PARAMETERS = 134_515_008
"""Of SmolLM2-135M, its tied embeddings counted once."""


# ---- generate


BATCH_SIZES = (16, 32, 64, 162)
"""Of transformers' generate; the last takes all prompts of the shipped test split at once."""

GENERATING = {
    "ours, bf16": ("ours", "bf16"),
    **{f"generate, batches of {size}, bf16": (f"generate-{size}", "bf16") for size in BATCH_SIZES},
    "one by one without a cache, bf16": ("loop", "bf16"),
    "one by one without a cache, fp32": ("loop", "fp32"),
}


@app.command()
def generate(rounds: Annotated[int, typer.Option(min=1, help="How often, each way in turn.")] = 3) -> None:
    """Answers of both models to the shipped test split, against transformers' generate and the textbook."""
    trials: dict[str, list[GeneratingTrial]] = {name: [] for name in GENERATING}
    for turn in range(rounds):
        say(f"generate: round {turn + 1} of {rounds}")
        for name, way in GENERATING.items():
            trials[name].append(answer_by(*way))
            say(f"  {name}: {trials[name][-1].tokens_per_second:.0f} tokens/s")
    _show_generating(trials)
    records = {name: [trial._asdict() for trial in found] for name, found in trials.items()}
    say(f"generate: every figure is in {save('generate', trials=records)}")


def _show_generating(trials: dict[str, list[GeneratingTrial]]) -> None:
    ours = [trial.tokens_per_second for trial in trials["ours, bf16"]]
    rows = []
    for name, found in trials.items():
        together = [trial.tokens_per_second for trial in found]
        parts = [spread([trial.rates[model] for trial in found], 0) for model in ("fine-tuned", "base")]
        ratios = spread([own / other for own, other in zip(ours, together, strict=True)])
        rows.append((name, *parts, spread(together, 0), ratios))
    show(
        f"Answering the shipped test split, in turn, rounds: {len(ours)}; tokens/s, median (lowest to highest)",
        ("", "fine-tuned model", "base model", "both", "ours is x times"),
        rows,
    )
    peers = [[t.tokens_per_second for t in found] for name, found in trials.items() if name.startswith("generate")]
    best = [own / max(rates) for own, *rates in zip(ours, *peers, strict=True)]
    note(
        f"Against generate at its best batch size in each round: {spread(best)} times. Loading a model is not timed;",
        "laying out its weights, which ours does, is. The loops answer every 27th prompt. The fine-tuned model's",
        "answers are short but for a few, the base model's long: generate waits for the longest of a batch.",
    )


# ---- benchmark


HARNESS_BATCHES = (4, 8)
"""Of lm-eval's own model. It keeps the logits of every token: 32 of the longest prompts took more than 20 GB."""

SIX_SUBJECTS = "abstract_algebra,anatomy,college_medicine,global_facts,high_school_european_history,us_foreign_policy"
"""Short questions and long ones."""


@app.command()
def benchmark(
    folder: Annotated[Path, typer.Argument(help="MMLU as published: dev/ and a folder of the split.")],
    split: Annotated[str, typer.Option(help="Whose questions are answered.")] = "val",
    subjects: Annotated[str, typer.Option(help="Between commas, or `all`.")] = SIX_SUBJECTS,
    rounds: Annotated[int, typer.Option(min=1, help="How often, each way in turn.")] = 3,
) -> None:
    """MMLU on the base model, five shots, against lm-eval's own model at several batch sizes, all in bf16."""
    ways = {"ours": "ours", **{f"lm-eval, batches of {size}": f"lm-eval-{size}" for size in HARNESS_BATCHES}}
    trials: dict[str, list[MmluTrial]] = {name: [] for name in ways}
    for turn in range(rounds):
        say(f"benchmark: round {turn + 1} of {rounds}")
        for name, way in ways.items():
            trials[name].append(measure_mmlu(way, "bf16", folder.absolute(), split, subjects))
            say(f"  {name}: {trials[name][-1].seconds:.1f} s")
    _show_benchmark(trials)
    records = {name: [trial._asdict() for trial in found] for name, found in trials.items()}
    say(f"benchmark: every figure is in {save('benchmark', split=split, subjects=subjects, trials=records)}")


def _show_benchmark(trials: dict[str, list[MmluTrial]]) -> None:
    ours = [trial.seconds for trial in trials["ours"]]
    rows = []
    for name, found in trials.items():
        seconds = [trial.seconds for trial in found]
        rates = spread([trial.rows / trial.seconds for trial in found])
        ratios = spread([other / own for own, other in zip(ours, seconds, strict=True)])
        rows.append((name, spread(seconds, 1), rates, ratios, f"{found[0].right / found[0].rows:.3f}"))
    show(
        f"MMLU, {trials['ours'][0].rows} questions after five shots, bf16, in turn, rounds: {len(ours)}",
        ("", "seconds", "questions/s", "ours is x times", "accuracy"),
        rows,
    )
    peers = [[trial.seconds for trial in found] for name, found in trials.items() if name != "ours"]
    best = [min(seconds) / own for own, *seconds in zip(ours, *peers, strict=True)]
    note(
        f"Against lm-eval at its best batch size in each round: {spread(best)} times. Loading is not timed; making",
        "prompts, tokens and scores is. lm-eval's model takes the softmax in bf16, ours in fp32.",
    )


if __name__ == "__main__":
    app()
