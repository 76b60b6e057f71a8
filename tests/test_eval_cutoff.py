"""Relevance rules on scores small enough to check by eye, and their choice on made-up searches."""

import numpy as np
import pytest

from twinlens.errors import ConfigError
from twinlens.evaluate.cutoff import Aim, choose_cutoff, cut_off
from twinlens.evaluate.cutoff_report import cut_off_page
from twinlens.evaluate.page import Page
from twinlens.evaluate.result import Result
from twinlens.evaluate.search_cases import (
    SearchCase,
    caption_case,
    label_case,
    smaller_corpus,
    varied_cases,
    with_nothing_relevant,
)
from twinlens.evaluate.sets import LabelledSet
from twinlens.runtime.relevance import (
    FEATURES,
    Measured,
    RelevanceRule,
    find_relevance_rule,
    read_relevance_rule,
    score_feature,
)
from twinlens.testing import FakeEmbedder

MEASURED = Measured(data="x", queries=1, precision=1.0, recall=1.0, silent_when_relevant=0.0)
MODEL = {"name": "fake", "model_id": "fake-1:8", "dim": 8}
SCORES = np.array([[0.5, 0.1, 0.3, 0.3]], dtype=np.float32)
NONE = np.zeros(1, dtype=np.float32)


def rule(kind="cosine", threshold=0.3, **other):
    return RelevanceRule(
        model_id="fake-1:8", kind=kind, threshold=threshold, measured=MEASURED, **other
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", [0.5, 0.1, 0.3, 0.3]),
        # mean 0.3, standard deviation sqrt((0.04 + 0.04) / 4)
        ("z", [2**0.5, -(2**0.5), 0, 0]),
        ("gap", [0, 0.4, 0.2, 0.2]),
        ("log_rank", [0, np.log(4), np.log(2), np.log(2)]),
        ("background", [0.3, -0.1, 0.1, 0.1]),
    ],
)
def test_a_feature_of_four_photos(name, expected):
    background = np.array([0.2], dtype=np.float32)
    found = score_feature(name, SCORES, background)
    assert found[0] == pytest.approx(expected, abs=1e-6)


def test_equal_scores_have_no_z():
    assert score_feature("z", np.full((1, 3), 0.2, dtype=np.float32), NONE).tolist() == [[0, 0, 0]]


def test_the_threshold_itself_is_relevant():
    query = np.ones(8, dtype=np.float32)
    assert rule().relevant(SCORES[0], query).tolist() == [True, False, True, True]
    assert not rule(threshold=0.6).relevant(SCORES[0], query).any()


def test_the_background_is_the_querys_mean_score_over_its_photos():
    photos = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    query = np.array([0.6, 0.8], dtype=np.float32)
    by_hand = float((photos @ query).mean())  # 0.7
    one = rule("background", 0.0, background=tuple(photos.mean(axis=0).tolist()))
    assert one.background_scores(query[None])[0] == pytest.approx(by_hand)
    assert one.relevant(np.array([0.75, 0.65], dtype=np.float32), query).tolist() == [True, False]


def test_a_logistic_rule_adds_weighted_features():
    one = rule("logistic", 0.0, weights=(10.0, 0.0, -5.0, 1.0, 0.0), bias=-2.0)
    expected = [5 - 2, 1 - 2 + np.log(4) - 2, 3 - 1 + np.log(2) - 2, 3 - 1 + np.log(2) - 2]
    assert one.values(SCORES, NONE)[0] == pytest.approx(expected, abs=1e-5)


def test_a_rule_survives_its_file_and_knows_its_model(tmp_path):
    one = rule("logistic", 0.25, weights=(1.0, 2.0, 3.0, 4.0, 0.0), bias=0.5)
    one.write(tmp_path / "relevance.json")
    assert read_relevance_rule(tmp_path / "relevance.json") == one
    assert find_relevance_rule(tmp_path, "fake-1:8") == one
    with pytest.raises(ConfigError, match=r"measured for fake-1:8, but .* indexed with other-1"):
        one.check_model("other-1")


def test_what_is_wrong_with_a_rule_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"has 5 weights .* not 1"):
        rule("logistic", weights=(1.0,))
    with pytest.raises(ConfigError, match="background relevance rule must hold a background"):
        rule("background")
    with pytest.raises(ConfigError, match="came without a relevance rule"):
        find_relevance_rule(tmp_path, "fake-1:8")
    with pytest.raises(ConfigError, match="came without a relevance rule"):
        find_relevance_rule(None, "fake-1:8")
    with pytest.raises(ConfigError, match="there is no relevance rule"):
        read_relevance_rule(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"kind": "cosine"}')
    with pytest.raises(ConfigError, match=r"other.json: RelevanceRule needs"):
        read_relevance_rule(tmp_path / "other.json")


def made_up(offsets, seed=0, name="made up"):
    """A query per offset; its scores are noise of 0.02 about the offset, two relevant photos
    stand 0.3 above. The vectors: one axis carries the offset, one per query its answers."""
    rng = np.random.default_rng(seed)
    queries, photos = len(offsets), 40
    scores = np.asarray(offsets)[:, None] + rng.normal(0, 0.02, (queries, photos))
    answers = tuple(np.array([2 * q % photos, (2 * q + 1) % photos]) for q in range(queries))
    for q, rows in enumerate(answers):
        scores[q, rows] += 0.3
    return SearchCase(
        name=name,
        queries=scores.astype(np.float32),  # against a corpus of axes: scores are just these
        corpus=np.eye(photos, dtype=np.float32),
        relevant=answers,
        ids=tuple(f"q{q}" for q in range(queries)),
        groups=tuple(f"q{q}" for q in range(queries)),
    )


def test_where_scores_are_comparable_the_one_cosine_wins_and_finds_all():
    found = choose_cutoff([made_up(np.full(20, 0.1))], model=MODEL, kinds=("cosine", "z"))
    assert found.rule.kind == "cosine"
    # Noise of 800 scores stays below 0.1 + 5 * 0.02 and answers above 0.4 - 5 * 0.02.
    assert 0.2 < found.rule.threshold < 0.4
    assert found.result.figures["precision"].value == 1.0
    assert found.result.figures["recall"].value == 1.0
    assert found.rule.measured.silent_when_nothing is None


def test_where_each_query_has_its_own_level_a_cosine_fails_and_z_is_chosen():
    case = made_up(np.linspace(-0.5, 0.5, 20))
    found = choose_cutoff([case], model=MODEL, kinds=("cosine", "z"))
    kinds = found.result.details["kinds"]
    assert found.rule.kind == "z"
    # Two answers 0.3 above 38 others: z is 4.4 (less for the noise), theirs below 1.
    assert 1 < found.rule.threshold < 5
    assert (kinds["z"]["precision"], kinds["z"]["recall"]) == (1.0, 1.0)
    assert kinds["cosine"]["precision"] < 0.9 or kinds["cosine"]["recall"] < 0.9


def test_a_logistic_rule_learns_what_separates(tmp_path):
    case = made_up(np.linspace(-0.5, 0.5, 20))
    found = choose_cutoff([case], model=MODEL, kinds=("logistic",))
    assert found.result.figures["precision"].value > 0.95
    assert found.result.figures["recall"].value > 0.95
    found.rule.write(tmp_path / "rule.json")
    again = read_relevance_rule(tmp_path / "rule.json")
    assert len(again.weights) == len(FEATURES)
    query, scores = case.queries[0], case.queries[0]  # the corpus is axes
    assert np.flatnonzero(again.relevant(scores, query)).tolist() == [0, 1]


def test_a_query_without_an_answer_counts_against_precision_only_if_it_shows_something():
    case = made_up(np.full(20, 0.1))
    empty = SearchCase(
        name="nothing",
        queries=np.full((20, 40), 0.1, dtype=np.float32),
        corpus=case.corpus,
        relevant=(np.array([], dtype=np.int64),) * 20,
        ids=case.ids,
        groups=case.groups,
    )
    found = choose_cutoff([case, empty], model=MODEL, kinds=("cosine",))
    figures = found.result.figures
    assert figures["shows nothing, and there is nothing"].value == 1.0
    assert figures["shows nothing, though there is something"].value == 0.0
    assert figures["precision"].value == 1.0
    assert found.result.data["queries with nothing relevant"] == 20
    corpora = [row["corpus"] for row in found.result.details["corpora"]]
    assert corpora == ["made up, 40 photos", "nothing, 40 photos, nothing relevant"]
    # All photos of a constant row have z 0.
    by_z = choose_cutoff([case, empty], model=MODEL, kinds=("z",), aim=Aim(beta=1.0)).result.figures
    assert by_z["shows nothing, and there is nothing"].value == 1.0


def test_a_wanted_precision_is_bought_with_recall():
    rng = np.random.default_rng(1)
    truth = rng.random((100, 50)) < 0.2
    scores = (truth * 0.1 + rng.normal(0, 0.1, truth.shape)).astype(np.float32)  # one sd apart
    case = SearchCase(
        name="noisy",
        queries=scores,
        corpus=np.eye(50, dtype=np.float32),
        relevant=tuple(np.flatnonzero(row) for row in truth),
        ids=tuple(map(str, range(100))),
        groups=tuple(map(str, range(100))),
    )

    def figures(**aim):
        found = choose_cutoff([case], model=MODEL, kinds=("cosine",), aim=Aim(**aim))
        return found.result.figures

    wide, narrow = figures(precision=0.3), figures(precision=0.6)
    # Cross-validated: what was reached on the other folds is missed by little.
    assert 0.25 < wide["precision"].value < 0.4 and 0.5 < narrow["precision"].value < 0.75
    assert narrow["recall"].value < wide["recall"].value
    assert wide["precision"].low < wide["precision"].value < wide["precision"].high


@pytest.mark.parametrize(
    ("aim", "message"), [({"beta": 0.0}, "beta 0"), ({"precision": 2.0}, "of 2")]
)
def test_an_impossible_aim_is_refused(aim, message):
    with pytest.raises(ConfigError, match=message):
        Aim(**aim)


def test_f_beta_of_precision_and_recall():
    worth = Aim(beta=0.5).worth(np.array([0.5, np.nan]), np.array([1.0, 1.0]))
    # 1.25 * 0.5 * 1 / (0.25 * 0.5 + 1), and nothing for no answers
    assert worth == pytest.approx([0.625 / 1.125, 0.0])


def test_captions_and_labels_become_searches():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 8)).astype(np.float32)
    captions = rng.normal(size=(8, 8)).astype(np.float32)
    owner = np.repeat(np.arange(4), 2)
    texts = [f"caption {row}" for row in range(8)]
    case = caption_case("c", images, captions, owner, texts)
    assert [rows.tolist() for rows in case.relevant] == [[0], [0], [1], [1], [2], [2], [3], [3]]
    assert case.groups[0] == case.groups[1] != case.groups[2]
    assert len(caption_case("c", images, captions, owner, texts, max_queries=3)) == 3
    labelled = label_case("l", images, np.array([1, 0, 1, 1]), captions[:2], ("a", "b"))
    assert [rows.tolist() for rows in labelled.relevant] == [[1], [0, 2, 3]]


def test_held_out_queries_find_their_photos_gone_and_each_is_asked_once():
    case = made_up(np.full(20, 0.1))
    parts = with_nothing_relevant(case, parts=2)
    assert sorted(query for part in parts for query in part.ids) == sorted(case.ids)
    for part in parts:
        assert part.relevant_counts.sum() == 0
        assert len(part.corpus) == 20  # 10 queries of 2 photos each are gone
        for query, group in zip(part.queries, part.groups, strict=True):
            own = case.relevant[int(group[1:])]
            left = part.corpus.argmax(axis=1)  # which axes are still there
            assert not set(own) & set(left) and query.shape == (40,)


def test_a_smaller_corpus_keeps_rows_right():
    case = made_up(np.full(20, 0.1))
    small = smaller_corpus(case, 10)
    assert len(small.corpus) == 10
    for text, rows in zip(small.ids, small.relevant, strict=True):
        axes = set(small.corpus[rows].argmax(axis=1))
        assert axes <= set(case.relevant[int(text[1:])])
    assert (small.relevant_counts == 0).any() and (small.relevant_counts > 0).any()
    assert len(varied_cases(case, sizes=(10, 1000))) == 1 + 2 + 1


def test_bad_cases_are_named():
    case = made_up(np.full(4, 0.1))
    with pytest.raises(ConfigError, match=r"'q0' names a photo outside the corpus of 1"):
        SearchCase("x", case.queries, case.corpus[:1], case.relevant, case.ids, case.groups)
    with pytest.raises(ConfigError, match=r"4 queries, .* 3 ids"):
        SearchCase("x", case.queries, case.corpus, case.relevant, case.ids[:3], case.groups)
    with pytest.raises(ConfigError, match="5 folds of 4 different things"):
        choose_cutoff([case], model=MODEL)
    with pytest.raises(ConfigError, match="there are none"):
        choose_cutoff([], model=MODEL)


def test_from_a_labelled_set_to_a_rule_and_a_result_that_survives_json():
    embedder = FakeEmbedder(dim=32)
    names = tuple((f"class {row}",) for row in range(12))
    labels = np.repeat(np.arange(12), 5)
    data = LabelledSet(
        name="toy",
        images=[str(row).encode() for row in range(60)],
        labels=labels,
        class_names=names,
        ids=tuple(map(str, range(60))),
    )
    texts = embedder.texts([name for (name,) in names])
    noise = np.random.default_rng(0).normal(0, 0.1, (60, 32))
    images = (texts[labels] + noise).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    found = cut_off(embedder, data, images)
    # cos 0.87 with its own text, and 0 with a deviation of 0.18 with the 11 others.
    assert found.result.figures["recall"].value > 0.9
    assert found.rule.model_id == embedder.model_id
    again = Result.from_json(found.result.to_json())
    page = Page("report")
    cut_off_page(page, again)
    assert "toy, 60 photos" in page.html() and "Where the threshold could lie" in page.html()
    assert again.figures == found.result.figures and again.data["classes"] == 12
