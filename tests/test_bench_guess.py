"""The benchmark of guessing ahead: its texts are new ones, its intervals are those of order statistics, it fails."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from support.benchlib import benchlib

guess, figures, prompts, guess_crowd, guess_model = map(
    benchlib, ("guess", "guess_figures", "guess_prompts", "guess_crowd", "guess_crowd_model")
)


def run(*tokens: int, trips: int = 4, seconds: float = 1.0, **drafts: tuple[int, int]) -> Any:
    return figures.Run(tokens, seconds, len(tokens), trips, drafts)


def bench(tmp_path: Path) -> Any:
    return guess.Bench(1, 8, ("suffix",), ("chat",), 10, tmp_path)


@pytest.mark.parametrize(
    ("count", "cut"),
    # As tables for small samples have them: of nine values the second and the eighth, of twenty the sixth and 15th.
    [(1, 0), (5, 0), (6, 0), (9, 1), (12, 2), (15, 3), (20, 5), (25, 7)],
)
def test_the_interval_of_a_median_is_known_from_tables(count: int, cut: int) -> None:
    values = [float(value) for value in range(count)]
    assert figures.interval(values[::-1]) == (values[cut], values[count - 1 - cut])


def test_figures_of_a_mode_are_those_of_its_pairs() -> None:
    texts = [
        {"off": run(1, 2, 3, 4), "suffix": run(1, 2, 3, 4, trips=2, seconds=0.5, suffix=(4, 2))},
        {"off": run(5, 6, 7, 8), "suffix": run(5, 6, 7, 8, trips=4, seconds=0.25, suffix=(2, 1))},
    ]
    plain, suffix = figures.summary(texts)
    assert (plain["mode"], plain["ratio"], plain["acceptance"]) == ("off", 1.0, None)
    assert suffix["ratios"] == [2.0, 4.0]
    assert suffix["ratio"] == 3.0
    assert suffix["tokens_per_trip"] == pytest.approx(8 / 6)
    assert (suffix["guessed"], suffix["acceptance"], suffix["drafters"]) == (6, 0.5, {"suffix": (6, 3)})


def test_other_tokens_and_more_trips_fail_the_run(tmp_path: Path) -> None:
    good = bench(tmp_path)
    guess.checked(good, "chat", {"off": run(1, 2), "suffix": run(1, 2, trips=3), "alone": run(1, 2, trips=0)})
    assert not good.failures
    for mode, bad in (("suffix", run(1, 3)), ("alone", run(1, 3, trips=0)), ("suffix", run(1, 2, trips=5))):
        failing = bench(tmp_path)
        guess.checked(failing, "chat", {"off": run(1, 2), mode: bad})
        assert len(failing.failures) == 1


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_prompts_are_new_ones_and_the_same_in_every_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f'def shown{index}(given):\n    """{"text " * 8}"""\n    return {index}\n\n\n' for index in range(60)]
    monkeypatch.setattr(prompts, "held_out_texts", lambda: ("".join(lines),))
    first, again, others = (list(itertools.islice(prompts.prompts(kind, 60, seed), 9)) for seed in (0, 0, 1))
    assert len(first) == 9
    assert first == again != others
    assert len({tuple(text["turns"]) for text in first}) == 9


def test_sessions_are_compared_beside_one_that_guesses_in_the_same_seconds() -> None:
    """Ten tokens a second for six seconds, then five, and 20 ms at the peer, then 30; then it guesses."""
    moments = [(index / 10, 1) for index in range(60)] + [(6 + index / 5, 1) for index in range(15)]
    samples = [(index / 2, 5 * index, 0.1 * index) for index in range(13)]
    samples += [(6.5 + index / 2, 60 + 2 * index, 1.2 + 0.06 * index) for index in range(5)]
    answer = {"moments": [moments], "at_peers": [samples], "ended": 9.0}

    def window(began: float, guessed: int) -> dict[str, Any]:
        return {"began": began, "ended": began + 1.7, "guessed": guessed, "busy": 0.25}

    kept = f"fixed, {guess_crowd.KEPT_BACK}"
    turns = [
        {"off": window(1.0, 0), kept: window(3.0, 0), "fixed": window(6.5, 7)},
        {"off": window(6.5, 0), kept: window(7.5, 0), "fixed": window(8.5, 7)},
    ]
    figures = guess_crowd.beside(answer, turns, "off", kept, "fixed")
    assert (figures["pairs"], figures["guessed"]) == (1, 7), "the second turn ends when nobody is there"
    assert (figures["ratio"], figures["sent_ratio"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert figures["kept_ratio"] == pytest.approx(1)
    assert (figures["without"], figures["with"]) == (pytest.approx(10), pytest.approx(5))
    assert figures["at_peer_ms"] == pytest.approx(20)
    assert figures["peer_cost"] == pytest.approx(0.1), "10 ms of a token's 100"


def test_in_virtual_time_the_rules_of_a_peer_keep_guesses_from_costing_eight_sessions_more_than_a_little() -> None:
    """The promise is 3 %, with the peer's own decisions; without them it is broken, so the model can show it."""
    case = (8, 0.050, 0.060, 0.003)
    (plain, _), (bare, _), (ruled, _) = (guess_model.run(case, rules, 1) for rules in guess_model.RULES)
    assert ruled < 1.03 * plain
    assert bare > 1.1 * plain


def test_in_virtual_time_one_other_session_hardly_waits_for_guesses_and_some_are_made() -> None:
    """Going by crowds alone it paid 18 %."""
    case = (1, 0.050, 0.060, 0.003)
    (plain, _), (bare, _), (ruled, share) = (guess_model.run(case, rules, 1) for rules in guess_model.RULES)
    assert ruled < 1.03 * plain < 1.3 * plain < bare
    assert share > 0
