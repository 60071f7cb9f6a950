"""Response against reference: exact match, token F1 and ROUGE-L."""

import re
import string
from collections import Counter

from rouge_score import rouge_scorer

_ROUGE = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra space (SQuAD v1.1, evaluate-v1.1.py, normalize_answer)."""
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
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
    """F measure of the longest common subsequence of words (Lin 2004; Google's rouge-score, no stemming)."""
    return float(_ROUGE.score(reference, response)["rougeL"].fmeasure)
