"""White space in raw texts, by policy."""

import re
from collections.abc import Callable


def _normalize(text: str) -> str:
    r"""One kind of line end, no white space at line ends, at most one empty line in a row.

    >>> _normalize(" a \r\n\r\n\r\nb\t")
    'a\n\nb'
    """
    text = re.sub(r"\r\n?|\u2028|\u2029", "\n", text)
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


WHITESPACE: dict[str, Callable[[str], str]] = {"strip": str.strip, "normalize": _normalize, "keep": str}
"""What becomes of white space in a text: off at both ends; evened out; as it is."""
