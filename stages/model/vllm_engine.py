"""The same answers by vLLM, where there is a GPU that it runs on; it is no dependency of ours."""

from collections.abc import Sequence
from pathlib import Path

import torch

from stages.model.checkpoint import outline_of
from stages.model.decoding import Completion, Decoding, Job, OnAnswer, end_tokens
from stages.pipeline.errors import UserError


def complete_by_vllm(
    folder: Path, jobs: Sequence[Job], how: Decoding, end_of_text: int, dtype: torch.dtype, on_answer: OnAnswer
) -> None:
    """Answer all jobs with the model in `folder`; a seed for each, so that their company changes no draw.

    Raises:
        UserError: vLLM is not installed.
    """
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise UserError(
            f"generate.engine: vllm cannot be imported ({error}); pip install vllm, or take engine: local"
        ) from None
    ends = end_tokens(outline_of(folder), end_of_text)
    model = LLM(model=str(folder), dtype=str(dtype).removeprefix("torch."), skip_tokenizer_init=True)
    sampling = [
        SamplingParams(
            max_tokens=how.max_new_tokens,
            temperature=how.temperature,
            top_k=how.top_k or -1,
            top_p=how.top_p,
            repetition_penalty=how.repetition_penalty,
            seed=job.seed % 2**63,
            stop_token_ids=sorted(ends),
            detokenize=False,
        )
        for job in jobs
    ]
    prompts = [{"prompt_token_ids": list(job.prompt)} for job in jobs]
    for at, output in enumerate(model.generate(prompts, sampling)):
        tokens = list(output.outputs[0].token_ids)
        ended = tokens[-1] in ends
        on_answer(at, Completion(tokens[:-1] if ended else tokens, "stop" if ended else "length"))
