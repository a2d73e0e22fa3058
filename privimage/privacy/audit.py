"""What a run with canaries shows: lower bounds on epsilon, and whether one contradicts the claim. No torch.

Canaries are made-up images, each inserted by a fair coin. From the run's results each gets a score, high if it looks
inserted. Under differential privacy nobody can tell insertions well; how well they are told bounds epsilon from below.

A bound above the claim is an alarm: with the stated confidence the mechanism is not what it is said to be. A bound far
below it shows nothing good: one run shows a part of epsilon only (a half at best, where nothing is assumed).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom, chi2, norm

from privimage.errors import ConfigError
from privimage.privacy.accounting import deltas_of, epsilon_of
from privimage.privacy.mechanisms import DPSGDMechanism

__all__ = [
    "CONFIDENCE",
    "FIT_CONFIDENCE",
    "LEAST_CANARIES",
    "Audit",
    "Bound",
    "CanaryScores",
    "audit",
    "clopper_pearson",
    "clopper_pearson_epsilon",
    "f_dp",
    "f_dp_refutes",
    "gaussian_fit",
    "one_run",
    "one_run_p_value",
    "trade_off",
]

LEAST_CANARIES = 100
CONFIDENCE = 0.95
# On a correct mechanism the fit ends just below the claim: so that its alarm is rare, its confidence is high.
FIT_CONFIDENCE = 1 - 1e-4
# How many of the canaries are guessed, those with the most extreme scores; fixed before scores are seen.
_GUESSED = (0.02, 0.1, 0.3, 1.0)
_MOST_EPSILON = 100.0
_LEAST_NOISE = 1e-3  # of which epsilon is finite, and larger than anybody claims
_EPSILONS = np.concatenate([np.linspace(0, 2, 81), np.geomspace(2.05, _MOST_EPSILON, 160)])


@dataclass(frozen=True, kw_only=True)
class CanaryScores:
    """What was observed of canaries, in units of the clipping bound.

    Attributes:
        inserted: the coins, bool, shape (canaries,).
        sums: of what each step released along a canary, over the steps; the score.
        squares: of the same, squared.
        steps: their number.
    """

    inserted: NDArray[np.bool_]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    steps: int

    def __post_init__(self) -> None:
        num, least = len(self.inserted), int(min(self.inserted.sum(), (~self.inserted).sum()))
        if num < LEAST_CANARIES or least < LEAST_CANARIES // 4:
            raise ConfigError(
                f"An audit needs at least {LEAST_CANARIES} canaries, a quarter of them inserted and a quarter not; found "
                f"{num}: raise their number."
            )
        if not (np.isfinite(self.sums).all() and np.isfinite(self.squares).all()):
            raise ConfigError("Some scores of canaries are not finite: the audited training diverged.")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A lower bound on epsilon that holds with `confidence` if what it assumes does."""

    name: str
    epsilon: float
    confidence: float
    assumption: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Bounds against the claim: epsilon of the mechanism that was audited, at `delta`."""

    claimed: float
    delta: float
    canaries: int
    bounds: tuple[Bound, ...]

    @property
    def alarms(self) -> tuple[Bound, ...]:
        """The bounds that contradict the claim."""
        return tuple(bound for bound in self.bounds if bound.epsilon > self.claimed)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.alarms:
            worst = max(self.alarms, key=lambda bound: bound.epsilon)
            return (
                f"The claim is refuted: {worst.name} shows epsilon above {worst.epsilon:.4g}, but {self.claimed:.4g} is "
                f"claimed (delta {self.delta:g}). Release nothing that this mechanism made."
            )
        return f"No bound contradicts the claimed epsilon {self.claimed:.4g} (delta {self.delta:g}); that proves no guarantee."


def audit(scores: CanaryScores, mechanism: DPSGDMechanism, delta: float) -> Audit:
    """All bounds, against the epsilon of `mechanism`, which is the one that the scores were made with."""
    return Audit(
        claimed=epsilon_of([mechanism.event], delta),
        delta=delta,
        canaries=len(scores.inserted),
        bounds=(
            clopper_pearson(scores, delta),
            one_run(scores, delta),
            f_dp(scores, mechanism, delta),
            gaussian_fit(scores, mechanism, delta),
        ),
    )


def clopper_pearson(scores: CanaryScores, delta: float) -> Bound:
    """From the errors at one threshold."""
    return Bound(
        name="Clopper-Pearson",
        epsilon=clopper_pearson_epsilon(scores.inserted, scores.sums, delta),
        confidence=CONFIDENCE,
        assumption="a canary's score does not depend on whether others are inserted",
    )


def clopper_pearson_epsilon(inserted: NDArray[np.bool_], scores: NDArray[np.float64], delta: float) -> float:
    """Epsilon is at least log((TPR - delta) / FPR), and the same for the other error; with CONFIDENCE, at least 0.

    The threshold is the best one on every second score, the errors are those of the others, with intervals by Clopper
    and Pearson (1934). Source: Nasr et al. (2021), arXiv:2101.04535.
    """
    tried = np.arange(len(scores)) % 2 == 0
    thresholds = np.quantile(scores[tried], np.linspace(0.01, 0.99, 99))
    best = max(thresholds, key=lambda threshold: _from_errors(inserted[tried], scores[tried] > threshold, delta))
    return _from_errors(inserted[~tried], scores[~tried] > best, delta)


def _from_errors(inserted: NDArray[np.bool_], taken: NDArray[np.bool_], delta: float) -> float:
    """Each of the two rates is at the end of its interval; together they fail as seldom as stated."""
    failure = (1 - CONFIDENCE) / 2
    tpr = _at_least(int((taken & inserted).sum()), int(inserted.sum()), failure)
    tnr = _at_least(int((~taken & ~inserted).sum()), int((~inserted).sum()), failure)
    found = [math.log((right - delta) / (1 - other)) for right, other in ((tpr, tnr), (tnr, tpr)) if right > delta]
    return max([0.0, *found])


def _at_least(successes: int, trials: int, failure: float) -> float:
    """Lower end of the interval of Clopper and Pearson for a probability."""
    return float(beta.ppf(failure, successes, trials - successes + 1)) if successes else 0.0


def one_run(scores: CanaryScores, delta: float) -> Bound:
    """From the number of right guesses among all canaries, which holds whatever the mechanism does.

    Source: Steinke, Nasr and Jagielski (2023), Theorem 5.2 and Appendix D, arXiv:2305.08846.
    """
    num, failure = len(scores.sums), (1 - CONFIDENCE) / len(_GUESSED)

    def bound(guesses: int, right: int) -> float:
        return _largest(lambda epsilon: one_run_p_value(num, guesses, right, epsilon, delta) < failure)

    return Bound(
        name="one run (Steinke et al.)",
        epsilon=max(bound(*guessed) for guessed in _guesses(scores)),
        confidence=CONFIDENCE,
        assumption="none",
    )


def one_run_p_value(num: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Bound on the probability of so many right guesses on `num` canaries under (epsilon, delta)."""
    honest = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, honest))
    fewer = np.arange(1, right + 1)
    between = binom.sf(right - fewer - 1, guesses, honest) - tail
    return min(1.0, tail + 2 * num * delta * float(np.max(between / fewer, initial=0.0)))


def f_dp(scores: CanaryScores, mechanism: DPSGDMechanism, delta: float) -> Bound:
    """From the same guesses, and the whole trade-off curve of the mechanism at other noise multipliers.

    Source: Mahloujifar, Melis and Chaudhuri (2024), Algorithm 3, arXiv:2410.22235, with the accountant's curve in the
    place of a Gaussian one.
    """
    num, failure = len(scores.sums), (1 - CONFIDENCE) / len(_GUESSED)
    guessed = list(_guesses(scores))

    def refuted(log_noise: float) -> bool:
        curve = trade_off(replace(mechanism, noise_multiplier=math.exp(log_noise)))
        return any(f_dp_refutes(curve, num, guesses, right, failure) for guesses, right in guessed)

    # More noise is easier to refute: from far more noise than any mechanism has, down to where nothing is refuted.
    most, least = math.log(mechanism.noise_multiplier) + 5, math.log(mechanism.noise_multiplier) - 3
    if not refuted(most):
        epsilon = 0.0
    else:
        while most - least > 0.01:
            middle = (most + least) / 2
            most, least = (middle, least) if refuted(middle) else (most, middle)
        epsilon = epsilon_of([replace(mechanism, noise_multiplier=math.exp(most)).event], delta)
    return Bound(
        name="one run, f-DP (Mahloujifar et al.)",
        epsilon=epsilon,
        confidence=CONFIDENCE,
        assumption="the mechanism is the accounted one, with some other noise",
    )


def f_dp_refutes(curve: Callable[[float], float], num: int, guesses: int, right: int, failure: float) -> bool:
    """Whether so many right guesses on `num` canaries have a probability below `failure` under a trade-off curve.

    Args:
        curve: from the probability of an event with a canary to the least that it can have without, or the reverse.
    """
    wrongly, rightly = failure * (guesses - right) / num, failure * right / num
    for rank in range(right - 1, -1, -1):
        more = max(wrongly, curve(rightly))
        if more == wrongly:
            break
        rightly, wrongly = min(1.0, rightly + rank / (guesses - rank) * (more - wrongly)), more
    return rightly + wrongly > guesses / num


@lru_cache(maxsize=256)
def trade_off(mechanism: DPSGDMechanism) -> Callable[[float], float]:
    """Of a probability x: the largest of exp(-e) (x - delta(e)) and 1 - delta(e) - exp(e) (1 - x), over epsilons e."""
    deltas = np.array(deltas_of([mechanism.event], _EPSILONS.tolist()))
    down, up = np.exp(-_EPSILONS), np.exp(_EPSILONS)

    def curve(x: float) -> float:
        return float(max(0.0, (down * (x - deltas)).max(), (1 - deltas - up * (1 - x)).max()))

    return curve


def gaussian_fit(scores: CanaryScores, mechanism: DPSGDMechanism, delta: float) -> Bound:
    """A heuristic: noise and signal are measured, and epsilon is that of the mechanism with their ratio.

    The noise is the spread of single steps over canaries that were not inserted, at the upper end of its interval. The
    signal is the mean of those that were: the clipping bound, as canaries are made, or where the interval contradicts that, its
    lower end.
    """
    inside, outside = scores.sums[scores.inserted], scores.sums[~scores.inserted]
    failure = (1 - FIT_CONFIDENCE) / 2
    noise = math.sqrt(scores.squares[~scores.inserted].sum() / chi2.ppf(failure, scores.steps * len(outside)))
    half = norm.ppf(1 - failure) * math.sqrt(inside.var(ddof=1) / len(inside) + outside.var(ddof=1) / len(outside))
    included = scores.steps * mechanism.sample_rate
    low, high = (float(inside.mean() - outside.mean() + end) / included for end in (-half, half))
    signal = 1.0 if low <= 1 <= high else low
    if signal <= 0:
        epsilon = 0.0
    else:
        fitted = max(noise / signal, _LEAST_NOISE)
        epsilon = epsilon_of([replace(mechanism, noise_multiplier=fitted).event], delta)
    return Bound(
        name="Gaussian fit",
        epsilon=epsilon,
        confidence=FIT_CONFIDENCE,
        assumption="heuristic: Gaussian noise, the same for all canaries and steps; an inserted canary adds the clipping "
        "bound, unless it is measured not to",
    )


def _guesses(scores: CanaryScores) -> list[tuple[int, int]]:
    """(guesses, right ones): as many highest scores are guessed to be inserted as lowest ones not to be."""
    order = np.argsort(scores.sums, kind="stable")
    found = []
    for share in _GUESSED:
        half = max(1, int(share * len(order)) // 2)
        right = int(scores.inserted[order[-half:]].sum() + (~scores.inserted[order[:half]]).sum())
        found.append((2 * half, right))
    return found


def _largest(refuted: Callable[[float], bool]) -> float:
    """The largest epsilon that is refuted, to 1e-3 below; 0 if none is."""
    low, high = 0.0, _MOST_EPSILON
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
