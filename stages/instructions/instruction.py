"""What an instruction is: a row of instruction data, whatever format it came in."""

import hashlib
import json
from typing import NamedTuple


class Turn(NamedTuple):
    """What a user said and what was answered."""

    user: str
    response: str


class Instruction(NamedTuple):
    """An instruction with the response that is wanted; of a conversation, its last turn with what came before."""

    instruction: str
    response: str
    input: str = ""
    """What the instruction works on; empty where it says everything itself."""
    system: str = ""
    history: tuple[Turn, ...] = ()
    """Earlier turns, oldest first."""
    category: str | None = None
    split: str | None = None
    """The split that the data fixes for this row."""
    file: str = ""
    line: int = 0
    """Line of the file on which the row begins, from 1; in Parquet the row's number."""

    @property
    def id(self) -> str:
        """Content hash: the first 16 hex digits of SHA-256 over every text the model may see."""
        texts: list[object] = [self.instruction, self.input, self.response]
        if self.system or self.history:
            texts += [self.system, self.history]
        return hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode()).hexdigest()[:16]


class Rejected(NamedTuple):
    """A row that is not used. `reason` is its kind, and after a colon what is particular to the row."""

    file: str
    line: int
    reason: str
    id: str | None = None
    """Content hash, where the row could be read that far."""

    @property
    def kind(self) -> str:
        """What the reason is counted under.

        >>> Rejected("a.jsonl", 7, "duplicate: same as a.jsonl:3").kind
        'duplicate'
        """
        return self.reason.partition(":")[0]
