"""Chats of benchmarks as the model saw its training: rendered by the template, as near to it as the template has."""

from collections.abc import Iterator, Sequence

from stages.benchmarks.benchmark import Message
from stages.instructions.instruction import Turn
from stages.instructions.templates import NoFormError, Segment, Template
from stages.pipeline.errors import UserError


def render(template: Template, messages: Sequence[Message]) -> list[Segment]:
    """Everything before the answer to the last user message, or, where an assistant's is last, before its end.

    Where the template has no form for a system message it stands before the first user message; where it has none for
    several turns they stand in one; a template that trims gets trimmed texts.

    Raises:
        UserError: the template has no form for the text even so.
    """
    begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    asked = messages[:-1] if begun else messages
    system = "\n\n".join(message["content"] for message in asked if message["role"] == "system")
    turns = _turns([message for message in asked if message["role"] != "system"])
    reason = ""
    for own_system, history, question in _ways(system, turns):
        try:
            segments = template.render(question, system=own_system, history=history)
        except NoFormError as error:
            reason = str(error)
            continue
        last = max(at for at, segment in enumerate(segments) if segment.role == "response")
        return [*segments[:last], Segment("response", begun)] if begun else segments[:last]
    raise UserError(
        f"template {template.name}: {reason}, in a prompt of a benchmark; set benchmark.template: false, or take "
        "another template"
    )


def plain(messages: Sequence[Message]) -> str:
    """The same without a template: one message is continued, several stand after their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    begun = messages[-1]["role"] == "assistant"
    shown = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return "\n\n".join(shown if begun else [*shown, "Assistant:"])


def _turns(messages: Sequence[Message]) -> list[Turn]:
    """Pairs of what was asked and answered; the last has no answer yet. Messages of one role in a row are one."""
    turns: list[Turn] = []
    for message in messages:
        role, text = message["role"], message["content"]
        if role == "assistant" and turns:
            turns[-1] = Turn(turns[-1].user, f"{turns[-1].response}\n\n{text}" if turns[-1].response else text)
        elif turns and not turns[-1].response:
            turns[-1] = Turn(f"{turns[-1].user}\n\n{text}", "")
        else:
            turns.append(Turn(text, "") if role == "user" else Turn("", text))
    if not turns or turns[-1].response:
        turns.append(Turn("", ""))
    return turns


def _ways(system: str, turns: Sequence[Turn]) -> Iterator[tuple[str, Sequence[Turn], str]]:
    """System message, history and question: as they are, then with ever less form."""
    stripped = [Turn(turn.user.strip(), turn.response.strip()) for turn in turns]
    for own, said in ((system, turns), (system.strip(), stripped)):
        *history, (question, _) = said
        together = "".join(f"User: {turn.user}\n\nAssistant: {turn.response}\n\n" for turn in history)
        together = f"{together}User: {question}" if history else question
        yield own, history, question
        if own:
            first = Turn(f"{own}\n\n{said[0].user}", said[0].response)
            yield "", [first, *history[1:]] if history else [], question if history else first.user
        if history:
            yield own, [], together
        if own and history:
            yield "", [], f"{own}\n\n{together}"
