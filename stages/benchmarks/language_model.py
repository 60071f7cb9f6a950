"""A local checkpoint as a language model of lm-eval, with our template for chats.

Plain texts are encoded as lm-eval's own `hf` model encodes them; chats as in training, where control tokens of the
template alone count and a response begins with a token of its own.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from stages.benchmarks.benchmark import Message
from stages.benchmarks.subject import Asked, LocalSubject
from stages.instructions.templates import Segment
from stages.model.decoding import Decoding
from stages.model.likelihoods import Request

MAX_NEW_TOKENS = 256
"""Of an answer where a task says nothing, as in lm-eval's `hf` model."""


class LanguageModel(TemplateLM):  # type: ignore[misc]
    """What lm-eval asks of a model, by a subject."""

    def __init__(self, subject: LocalSubject) -> None:
        super().__init__()
        self._subject = subject
        self._chats: dict[str, list[Segment]] = {}
        self._last: tuple[str, list[int]] = ("", [])

    @property
    def eot_token_id(self) -> int:
        """End of text."""
        return self._subject.tokenizer.end_of_text

    @property
    def prefix_token_id(self) -> int:
        """What stands before a continuation without a context."""
        return self._subject.first_token

    @property
    def tokenizer_name(self) -> str:
        """Distinguishes prompts of different templates."""
        return f"onset-{self._subject.template}"

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """A chat as one text, which is known again when it comes back as a context."""
        rendered = self._subject.render(chat_history)
        if isinstance(rendered, str):
            return rendered
        text = "".join(segment.text for segment in rendered)
        self._chats[text] = rendered
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text or of a chat; a plain text gets the beginning that its tokenizer gives it, but once."""
        if string in self._chats:
            return self._subject.encode(self._chats[string])
        ids = self._subject.encode(string)
        return ids if add_special_tokens or add_special_tokens is None else ids[len(self._subject.beginning) :]

    def _encode_pair(self, context: str, continuation: str) -> tuple[Any, list[int]]:
        """Token ids of both. White space at the end of a context goes to its continuation, but of a template's own."""
        chat = self._chats.get(context)
        if chat is None:
            kept = context.rstrip()
            whole = self.tok_encode(context + continuation)
            start = len(self._encoded_once(kept)) if kept else len(self._subject.beginning)
        else:
            begun = chat[-1].text if chat[-1].role == "response" else ""
            asked = chat[:-1] if begun else chat
            whole = self._subject.encode([*asked, Segment("response", begun + continuation)])
            kept = begun.rstrip()
            start = len(self._subject.encode([*asked, Segment("response", kept)] if kept else asked))
        # An array takes a tenth of a list's memory, and a task has as many contexts as rows and choices.
        return np.array(whole[:start] or [self.prefix_token_id], dtype=np.int32), whole[start:]

    def _encoded_once(self, text: str) -> list[int]:
        """Choices of one question come one after the other."""
        if self._last[0] != text:
            self._last = (text, self.tok_encode(text))
        return self._last[1]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Sum of log-probabilities of each continuation, and whether greedy decoding would write it."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = self._subject.score([(context, continuation) for _, context, continuation in requests])
        return [(one.log_probability, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-probability of each whole text, in windows as long as the model takes."""
        windows: list[Request] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            pairs = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._subject.limit,
                context_len=1,
            )
            own = [make_disjoint_window(pair) for pair in pairs]
            windows += own
            owners += [owner] * len(own)
        sums = [0.0] * len(requests)
        for owner, found in zip(owners, self._subject.score(windows), strict=True):
            sums[owner] += found.log_probability
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """What the model writes after each context, up to the first text of `until`.

        A request that comes several times gets a sample of its own each time.
        """
        seen: Counter[tuple[str, str]] = Counter()
        groups: dict[str, list[tuple[int, int]]] = {}
        for at, request in enumerate(requests):
            context, settings = request.args
            kind = f"{context in self._chats} {sorted(settings.items())}"
            groups.setdefault(kind, []).append((at, seen[context, kind]))
            seen[context, kind] += 1
        texts = [""] * len(requests)
        for group in groups.values():
            context, settings = requests[group[0][0]].args
            how, stops = _decoding(settings)
            if context in self._chats:
                stops = self._subject.stops_of_chats(stops)
            asked = [Asked(self.tok_encode(requests[at].args[0]), sample) for at, sample in group]
            for (at, _), text in zip(group, self._subject.write(asked, how, stops), strict=True):
                texts[at] = text
        return texts


def _decoding(settings: Mapping[str, Any]) -> tuple[Decoding, list[str]]:
    """How to decode, and what ends an answer, from the `generation_kwargs` of a task."""
    given = normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS)
    how = Decoding(
        max_new_tokens=given["max_gen_toks"],
        temperature=given["temperature"] if given["do_sample"] else 0.0,
        top_k=given.get("top_k") or 0,
        top_p=given.get("top_p") or 1.0,
        repetition_penalty=given.get("repetition_penalty") or 1.0,
    )
    return how, given["until"]
