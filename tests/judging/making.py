"""Responses made up for tests."""

from stages.judging.responses import Response


def make_response(
    reference: str = "It is red.",
    *,
    id: str = "0",
    category: str | None = "colours",
    instruction: str = "Name the colour.",
    input: str = "",
    response: str = "It is blue.",
    base_response: str = "I do not know.",
) -> Response:
    return Response(
        id=id,
        category=category,
        instruction=instruction,
        input=input,
        reference=reference,
        response=response,
        finish_reason="stop",
        base_response=base_response,
        base_finish_reason="length",
    )
