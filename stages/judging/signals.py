"""Signals of agreement between an answer and a reference that need no model: 0 (none) to 1 (the same).

All of them count in time about proportional to the length of the texts, or in parallel over the bits of a machine word
(rapidfuzz), so that answers of 100,000 characters take well under a second.
"""

import re
from collections import Counter
from collections.abc import Callable

from rapidfuzz.distance import Indel

from stages.judging.responses import Response

_NUMBER = r"[0-9]+(?:[.,:/][0-9]+)*"
_TOKENS = re.compile(rf"{_NUMBER}|[^\W\d_]+(?:['\u2019][^\W\d_]+)*|[+*=<>%^$\u20ac\u00a3&|~/\\]|[^\W_]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_MARKUP = re.compile(r"\*\*|__|`+|^[ \t]*(?:[-*\u2022]|#+)[ \t]+", re.MULTILINE)

_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_ONES)}
_NUMBER_WORDS |= {word: str(value) for value, word in zip(range(20, 100, 10), _TENS, strict=True)}
_COMPOUND = re.compile(rf"\b({'|'.join(_TENS)})[- ]({'|'.join(_ONES[1:10])})\b")

_CONTRACTIONS = {"can't": "can not", "won't": "will not", "shan't": "shall not", "cannot": "can not", "let's": "let us"}
_ENDINGS = {"n't": "not", "'re": "are", "'ll": "will", "'ve": "have", "'m": "am", "'d": "would"}
_IS = {"it's", "that's", "there's", "he's", "she's", "what's", "who's", "here's"}

_ARTICLES = {"a", "an", "the"}
_FUNCTION_WORDS = frozenset({
    "is", "are", "was", "were", "be", "been", "being", "am", "it", "its", "this", "that", "these", "those", "of",
    "to", "in", "on", "at", "and", "or", "for", "with", "as", "by", "from", "so", "then", "do", "does", "did", "has",
    "have", "had", "will", "would", "there", "here", "i", "you", "he", "she", "we", "they", "his", "her", "their",
    "our", "your", "my", "me", "him", "us", "them", "which", "who", "what", "how", "because", "also", "into",
})  # fmt: skip
"""Words that carry no fact of their own. Words that turn a fact round (not, no, before, less) are none of them."""


def words(text: str) -> list[str]:
    """Lower-case words without articles and punctuation; numbers whole and in digits, contractions written out.

    >>> words("**The** answer isn't twenty-one; it's 3,000.5!")
    ['answer', 'is', 'not', '21', 'it', 'is', '3000.5']
    """
    plain = _MARKUP.sub(" ", text.lower().replace("\u2019", "'"))
    plain = _COMPOUND.sub(lambda m: str(int(_NUMBER_WORDS[m[1]]) + int(_NUMBER_WORDS[m[2]])), plain)
    found: list[str] = []
    for token in _TOKENS.findall(_THOUSANDS.sub("", plain)):
        if token not in _ARTICLES:
            found += _written_out(token) if "'" in token or token == "cannot" else [_NUMBER_WORDS.get(token, token)]
    return found


def _written_out(token: str) -> list[str]:
    if token in _CONTRACTIONS:
        return _CONTRACTIONS[token].split()
    if token in _IS:
        return [token.removesuffix("'s"), "is"]
    for ending, word in _ENDINGS.items():
        if token.endswith(ending):
            return [token.removesuffix(ending), word]
    return [token]


def content_words(text: str) -> Counter[str]:
    """Words of `text` that carry a fact, with their numbers."""
    return Counter(word for word in words(text) if word not in _FUNCTION_WORDS)


def word_similarity(answer: str, row: Response) -> float:
    """Words in common and in sequence, twice, over the words of both: 2 LCS / (n + m); 1 where both have none.

    Where the reference is the input in other letters or punctuation, these are what was asked for, and count.
    """
    wanted = words(row.reference)
    if row.input and wanted == words(row.input):
        return float(Indel.normalized_similarity(answer.split(), row.reference.split()))
    return float(Indel.normalized_similarity(words(answer), wanted))


def key_words(answer: str, row: Response) -> float:
    """F1 over content words that the instruction does not give away: what a right answer adds to the question.

    Where the reference adds none (as in sorting a list), the word similarity.
    """
    given = content_words(f"{row.instruction} {row.input}")
    wanted = _without(content_words(row.reference), given)
    if not wanted:
        return word_similarity(answer, row)
    added = _without(content_words(answer), given)
    return 2 * (added & wanted).total() / (added.total() + wanted.total())


def _without(found: Counter[str], given: Counter[str]) -> Counter[str]:
    return Counter({word: count for word, count in found.items() if word not in given})


def recall(answer: str, row: Response) -> float:
    """Share of the reference's content words that the answer has: long answers may be right; 1 where it has none."""
    wanted = content_words(row.reference)
    return (content_words(answer) & wanted).total() / wanted.total() if wanted else 1.0


def number_agreement(answer: str, row: Response) -> float:
    """Shared numbers over all numbers of both, counted with repetition; 1 where neither has any."""
    ours, theirs = (Counter(word for word in words(text) if word[0].isdigit()) for text in (answer, row.reference))
    total = (ours | theirs).total()
    return (ours & theirs).total() / total if total else 1.0


_NEGATIONS = frozenset({"not", "no", "never", "none", "nothing", "neither", "nor", "without"})


def no_swaps(answer: str, row: Response) -> float:
    """`recall` / (1 + swaps): a swap is a content word of the reference that is missing while another stands there.

    A lead-in adds words and a shorter answer lacks words; neither is a swap. A negation too many or too few is one.
    """
    ours, theirs = content_words(answer), content_words(row.reference)
    missing, added = theirs - ours, ours - theirs
    negations = abs(sum(missing[word] for word in _NEGATIONS) - sum(added[word] for word in _NEGATIONS))
    for word in _NEGATIONS:
        del missing[word], added[word]
    return recall(answer, row) / (1 + min(missing.total(), added.total()) + negations)


LEXICAL: dict[str, Callable[[str, Response], float]] = {
    "word_similarity": word_similarity,
    "key_words": key_words,
    "numbers": number_agreement,
    "no_swaps": no_swaps,
}
"""Each takes an answer and its row."""
