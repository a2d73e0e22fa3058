"""Randomness of the guarantee: the right distribution, and nothing that could be made again.

Every statistical test rejects at p < 1e-9 on fresh draws, so that a false alarm is not to be expected in our lives.
"""

from __future__ import annotations

import copy
import os
import pickle
import random as python_random

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri
from scipy.stats import kstest

from privimage.privacy.entropy import InsecureRandomForTests, Random, SecretRandom
from privimage.privacy.numerics import PER_STDDEV
from privimage.privacy.poisson import poisson_batch

ALARM = 1e-9
DRAWS = 200_000


def test_normal_draws_have_the_stated_scale_and_no_other() -> None:
    draws = SecretRandom().normal(DRAWS)
    assert kstest(draws, "norm").pvalue > ALARM
    assert kstest(draws * 2 / 3, "norm").pvalue < ALARM
    assert kstest(draws * 3 / 2, "norm").pvalue < ALARM


def test_the_moments_of_normal_draws_are_those_of_the_standard_normal() -> None:
    draws = SecretRandom().normal(DRAWS)
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((draws**power).mean() - moment) < 7 * (variance / DRAWS) ** 0.5
    assert np.abs(draws).max() > 3.5


def test_uniform_draws_are_uniform_inside_the_open_interval() -> None:
    draws = SecretRandom().uniform(DRAWS)
    assert kstest(draws, "uniform").pvalue > ALARM
    assert kstest(draws * 0.98, "uniform").pvalue < ALARM
    assert draws.min() > 0 and draws.max() < 1


def test_consecutive_draws_are_uncorrelated() -> None:
    draws = SecretRandom().normal(DRAWS)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 7 / DRAWS**0.5


class ConstantKeystream:
    def __init__(self, byte: int) -> None:
        self.byte = byte

    def update(self, data: bytes) -> bytes:
        return bytes([self.byte]) * len(data)


def draws_of(words: list[int]) -> np.ndarray:
    """Normal draws of a keystream that holds these 256-bit numbers, most significant word first."""

    class Given:
        def update(self, data: bytes) -> bytes:
            rows = np.array(
                [[word >> shift & (2**64 - 1) for word in words] for shift in (192, 128, 64, 0)], dtype=np.uint64
            )
            assert rows.nbytes == len(data)
            return rows.tobytes()

    random = SecretRandom()
    random._keystream = Given()  # type: ignore[assignment]
    return random.normal(len(words))


def test_normal_draws_are_the_exact_inverse_of_their_256_bits_far_into_the_tail() -> None:
    """Off by at most 2^-49, or that share of them: what the proof in docs/privacy.md allows for."""
    seeds = np.random.default_rng(0)
    numbers = [0, 1, 2**63, 2**64, 2**128 - 1, 2**192, 2**255 - 1, 2**254, 2**254 - 1]
    numbers += [int.from_bytes(seeds.bytes(32), "big") >> int(shift) + 1 for shift in seeds.integers(0, 255, 1000)]
    for drawn, number in zip(draws_of(numbers), numbers, strict=True):
        # Newton's method from the draw itself; the derivative of the distribution function is the density.
        with mpmath.workprec(400):
            probability = (mpmath.mpf(number) + 0.5) / mpmath.mpf(2) ** 256
            size = mpmath.mpf(float(-drawn))
            for _ in range(3):
                size -= (mpmath.ncdf(size) - probability) / mpmath.npdf(size)
            assert abs(-drawn - size) <= 2.0**-49 * max(1, abs(size)), number
    assert draws_of([0])[0] > 18.6 and draws_of([2**255])[0] == -draws_of([0])[0]


def test_the_largest_normal_draws_lie_as_close_together_as_the_lattice_needs() -> None:
    """With 52 bits, those beyond five deviations are so few that which of them occurs tells what they were added to."""
    for deviations in (5, 8, 12, 18):
        number = int(ndtr(-deviations) * 2.0**256)
        near = draws_of([number + step * number // 10**6 for step in range(-50, 51)])
        assert 0 < np.abs(np.diff(near)).max() < 1e-3 / PER_STDDEV


@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_the_outermost_keystreams_give_neither_0_nor_1_nor_infinite_noise(byte: int) -> None:
    random = SecretRandom()
    random._keystream = ConstantKeystream(byte)  # type: ignore[assignment]
    draw = random.uniform(1)[0]
    assert 0 < draw < 1
    assert np.isfinite(random.normal(1)).all()
    assert list(poisson_batch(3, 1.0, random)) == [0, 1, 2]
    assert list(poisson_batch(3, 0.0, random)) == []
    assert 0 <= random.seed() < 2**63


def test_two_sources_and_two_calls_share_no_draw() -> None:
    one, other = SecretRandom(), SecretRandom()
    draws = np.concatenate([one.uniform(1000), one.uniform(1000), other.uniform(1000)])
    assert len(np.unique(draws)) == 3000
    assert len({one.seed(), one.seed(), other.seed(), other.seed()}) == 4


def test_seeding_every_known_generator_does_not_reproduce_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    states = torch.get_rng_state(), np.random.get_state(), python_random.getstate()
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        python_random.seed(0)
        runs.append(SecretRandom().normal(100))
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    python_random.setstate(states[2])
    assert not np.isin(runs[0], runs[1]).any()


def test_it_leaves_the_global_generators_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate()
    SecretRandom().normal(100)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == python_random.getstate()


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_cannot_be_copied_or_stored(duplicate: object) -> None:
    with pytest.raises(TypeError, match="two copies would make the same noise"):
        duplicate(SecretRandom())  # type: ignore[operator]


def test_a_forked_process_does_not_draw_the_noise_of_its_parent() -> None:
    random = SecretRandom()
    random.seed()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, random.normal(8).tobytes())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    theirs = np.frombuffer(os.read(reader, 64))
    assert len(theirs) == 8
    assert not np.isin(random.normal(8), theirs).any()


def test_showing_it_shows_nothing() -> None:
    random = SecretRandom()
    assert repr(random) == str(random) == "SecretRandom()"
    random.normal(10)
    assert not any(isinstance(value, (bytes, bytearray, str, np.ndarray)) for value in vars(random).values())


def test_a_key_is_replaced_long_before_its_keystream_would_repeat() -> None:
    random = SecretRandom()
    first = random._keystream
    random.uniform(1000)
    random.seed()
    assert random._keystream is first
    assert random._used == 8 * 1001
    random._used = 2**36 + 1
    random.seed()
    assert random._keystream is not first
    assert random._used == 8


def test_only_the_secret_source_carries_a_guarantee() -> None:
    sources: list[Random] = [SecretRandom(), InsecureRandomForTests(0)]
    assert [source.guarantee for source in sources] == [True, False]


def test_the_source_for_tests_repeats_itself() -> None:
    one, again, other = InsecureRandomForTests(1), InsecureRandomForTests(1), InsecureRandomForTests(2)
    draws = one.normal(10)
    assert (draws == again.normal(10)).all()
    assert not (draws == other.normal(10)).any()
    assert one.seed() == again.seed()


def test_coins_seeds_and_noise_of_one_step_are_unrelated() -> None:
    random = SecretRandom()
    coins, seeds, noise = [], [], []
    for _ in range(4000):
        coins.append(random.uniform(20))
        seeds.append(random.seed() / 2**63)
        noise.append(random.normal(20))
    drawn = np.column_stack([ndtri(np.stack(coins)), ndtri(np.array(seeds)), np.stack(noise)])
    same_step = np.corrcoef(drawn, rowvar=False)[np.triu_indices(41, 1)]
    next_step = (drawn[:-1].T @ drawn[1:]) / (len(drawn) - 1)
    for correlations in (same_step, next_step):
        assert np.abs(correlations).max() < 7.5 / len(drawn) ** 0.5
    copied = np.column_stack([drawn[:, :40], drawn[:, 3]])
    assert np.abs(np.corrcoef(copied, rowvar=False)[np.triu_indices(41, 1)]).max() > 0.99


def test_every_bit_of_a_seed_is_a_fair_coin_and_the_bits_are_unrelated() -> None:
    random, count = SecretRandom(), 20_000
    seeds = np.array([random.seed() for _ in range(count)])
    bits = (seeds[:, None] >> np.arange(64)) & 1
    assert not bits[:, 63].any(), "63 bits: torch takes no more"
    signs = 2.0 * bits[:, :63] - 1
    assert np.abs(signs.mean(0)).max() < 7 / count**0.5
    assert np.abs((signs.T @ signs / count)[np.triu_indices(63, 1)]).max() < 7.5 / count**0.5
    assert len(np.unique(seeds)) == count
