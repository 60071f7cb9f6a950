"""Near-duplicates and the deal."""

from hypothesis import given, settings
from hypothesis import strategies as st

from stages.instructions.deal import deal
from stages.instructions.duplicates import cluster, jaccard, leaks, shingles

FRACTIONS = (0.6, 0.2, 0.2)
WORDS = [
    "name",
    "the",
    "capital",
    "city",
    "of",
    "france",
    "germany",
    "spain",
    "list",
    "three",
    "fruits",
    "with",
    "a",
    "b",
]
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)


def test_near_duplicates_share_a_cluster() -> None:
    texts = [
        "What is the capital of France?",
        "Sort these numbers from small to large.",
        "what is  the capital of France",
        "What is the capital of France??",
    ]
    assert cluster(texts, 0.7) == [0, 1, 0, 0]


@settings(max_examples=50, deadline=None)
@given(st.lists(sentences, min_size=1, max_size=25))
def test_clusters_are_those_of_the_true_similarity(texts: list[str]) -> None:
    """LSH may miss a pair at the threshold; from well above it, and never below it, the clusters are exact."""
    clusters = cluster(texts, 0.5)
    sets = [shingles(text) for text in texts]
    for i in range(len(texts)):
        for j in range(i):
            if jaccard(sets[i], sets[j]) >= 0.8:
                assert clusters[i] == clusters[j]
    for i, first in enumerate(clusters):
        assert first <= i
        assert clusters[first] == first
        if first != i:
            alike = [j for j in range(len(texts)) if j != i and jaccard(sets[i], sets[j]) >= 0.5]
            assert any(clusters[j] == first for j in alike)


@settings(max_examples=50, deadline=None)
@given(st.lists(sentences, min_size=1, max_size=20), st.lists(sentences, min_size=1, max_size=20))
def test_leaks_are_all_pairs_at_the_threshold(train: list[str], held_out: list[str]) -> None:
    expected = {
        (i, j)
        for i, text in enumerate(held_out)
        for j, other in enumerate(train)
        if jaccard(shingles(text), shingles(other)) >= 0.6
    }
    assert set(leaks(train, held_out, 0.6)) == expected


@given(st.lists(st.text(min_size=1), min_size=1, unique=True), st.lists(st.text(min_size=1), unique=True), st.text())
def test_new_rows_move_no_old_row(old: list[str], new: list[str], salt: str) -> None:
    alone = deal(old, list(range(len(old))), FRACTIONS, salt)
    together = deal(old + new, list(range(len(old) + len(new))), FRACTIONS, salt)
    assert together[: len(old)] == alone


def test_clusters_are_dealt_whole_and_by_salt() -> None:
    keys = [str(i) for i in range(300)]
    clusters = [i // 3 * 3 for i in range(300)]
    dealt = deal(keys, clusters, FRACTIONS, "salt")
    assert all(dealt[i] == dealt[i // 3 * 3] for i in range(300))
    assert 120 < dealt.count("train") < 240
    assert dealt != deal(keys, clusters, FRACTIONS, "pepper")
