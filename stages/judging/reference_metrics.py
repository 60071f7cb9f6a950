"""Response against reference: exact match, token F1 and ROUGE-L."""

import re
import string
from collections import Counter

from rapidfuzz.distance import LCSseq
from rouge_score.tokenize import tokenize

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra space (SQuAD v1.1, evaluate-v1.1.py, normalize_answer)."""
    plain = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def exact_match(response: str, reference: str) -> float:
    """1.0 where the normalized texts are equal, else 0.0."""
    return float(normalize(response) == normalize(reference))


def token_f1(response: str, reference: str) -> float:
    """Harmonic mean of precision and recall over normalized words (SQuAD v1.1, f1_score); 1 where both have none."""
    ours, theirs = normalize(response).split(), normalize(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def rouge_l(response: str, reference: str) -> float:
    """F measure of the longest common subsequence of words (Lin 2004).

    Words and figures are those of Google's rouge-score without stemming; its own subsequence takes hours and gigabytes
    for long answers, rapidfuzz's goes over 64 words at once.
    """
    ours, theirs = tokenize(response, None), tokenize(reference, None)
    return 2 * LCSseq.similarity(ours, theirs) / (len(ours) + len(theirs)) if ours and theirs else 0.0
