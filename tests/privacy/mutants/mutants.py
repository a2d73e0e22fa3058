"""Seeded privacy bugs: one small change of the real code each, and the test that must notice it.

`old` occurs exactly once in `file`. `test` is the node id, below tests/, of the test that fails once `old` became
`new`. Whoever moves the code moves `old` along; whoever renames the test renames it here.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One bug; `name` says in a sentence what it does."""

    name: str
    file: str
    old: str
    new: str
    test: str


def _of(file: str, tests: str, *bugs: tuple[str, str, str, str]) -> list[Mutant]:
    """Bugs of one file (name, old, new, test), noticed by the tests of one file.

    `file` lies below privimage/, unless it begins with benchmarks/.
    """
    path = file if file.startswith("benchmarks/") else f"privimage/{file}"
    return [Mutant(name=name, file=path, old=old, new=new, test=f"{tests}::{test}") for name, old, new, test in bugs]


_CLIPPING = _of(
    "privacy/clipping.py",
    "privacy/test_clipping.py",
    (
        "NaN and infinite rows are not zeroed",
        "        row[factors == 0] = 0.0\n",
        "        pass\n",
        "test_no_float_whatsoever_passes_the_bound",
    ),
    (
        "A row of NaN passes as finite",
        "torch.where(whole < LARGEST_NORM, factors",
        "torch.where(~(whole >= LARGEST_NORM), factors",
        "test_a_bad_image_counts_as_zero_and_poisons_no_other",
    ),
    (
        "Rows without a finite norm keep their factor",
        "return torch.where(whole < LARGEST_NORM, factors, torch.zeros_like(factors))",
        "return factors",
        "test_no_float_whatsoever_passes_the_bound",
    ),
    (
        "Nothing is clipped",
        "torch.cat([factors @ row for row in rows])",
        "torch.cat([row.sum(0) for row in rows])",
        "test_no_float_whatsoever_passes_the_bound",
    ),
    (
        "The sum is divided by the true number of images",
        "torch.cat([factors @ row for row in rows])",
        "torch.cat([factors @ row for row in rows]) / max(1, len(factors))",
        "test_the_sum_is_that_of_a_plain_loop",
    ),
    (
        "Only the first parameter's gradient counts in the norm",
        "torch.stack([row_norms(row) for row in rows], dim=1)",
        "torch.stack([row_norms(row) for row in rows[:1]], dim=1)",
        "test_the_sum_is_that_of_a_plain_loop",
    ),
    (
        "No room is left for rounding, so that the bound is passed by a little",
        "SHRINK = 1 - 2.0**-14",
        "SHRINK = 1.0",
        "test_no_float_whatsoever_passes_the_bound",
    ),
    (
        "The norm of a long gradient is added up in float32 at once",
        "_BLOCK = 256\n",
        "_BLOCK = 2**40\n",
        "test_the_bound_holds_for_long_gradients_too",
    ),
)

_ENGINES = (
    _of(
        "privacy/gradients/bookkeeping.py",
        "privacy/gradients/test_engines.py",
        (
            "Images are clipped to twice the stated norm",
            "in gradients.values()], dim=1), max_grad_norm)",
            "in gradients.values()], dim=1), 2 * max_grad_norm)",
            "test_zeroing_out_any_image_changes_the_sum_by_at_most_the_bound",
        ),
        (
            "The norm of an image leaves a layer out",
            "[norms for _, norms in gradients.values()]",
            "[norms for _, norms in list(gradients.values())[:-2]]",
            "test_every_engine_gives_the_sum_of_a_plain_loop[bookkeeping]",
        ),
        (
            "Each draw of an image is clipped by itself",
            "module, rows, rows // draws, dtype",
            "module, rows, rows, dtype",
            "test_every_engine_gives_the_sum_of_a_plain_loop[bookkeeping]",
        ),
        (
            "The gradients of an image's draws are summed, not averaged",
            "network, rows).sum() / draws",
            "network, rows).sum()",
            "test_every_engine_gives_the_sum_of_a_plain_loop[bookkeeping]",
        ),
        (
            "Gradients that are not finite are not dropped",
            "                gradient.drop(factors == 0)\n",
            "",
            "test_a_bad_image_counts_as_zero_and_poisons_no_other",
        ),
        (
            "The partial sum of the batch before is left over in the next",
            "total = torch.zeros(sum(sizes.values()), device=next(iter(parameters.values())).device)",
            'total = self.__dict__.setdefault("_total", torch.zeros(sum(sizes.values())))',
            "test_an_empty_batch_gives_zeros_whatever_came_before",
        ),
        (
            "Of a layer that is used twice the last use counts alone",
            "                gradient = Formed([self.found[name].formed() + gradient.formed()])\n",
            "                pass\n",
            "test_parameters_that_are_shared_or_used_several_times_count_once",
        ),
    )
    + _of(
        "privacy/gradients/vectorised.py",
        "privacy/gradients/test_engines.py",
        (
            "The loss may draw randomness of its own",
            'randomness="error"',
            'randomness="different"',
            "test_randomness_inside_the_loss_is_an_error",
        ),
        (
            "A chunk's gradients are summed before they are clipped",
            "[gradients[name].float() for name in parameters]",
            "[gradients[name].float().sum(0, keepdim=True) for name in parameters]",
            "test_rows_at_once_changes_nothing",
        ),
    )
    + _of(
        "privacy/gradients/layers.py",
        "privacy/gradients/test_layers.py",
        (
            "All images of a call of a convolution share one gradient",
            "return weights.unflatten(0, (images, -1)), biases",
            "return weights.unflatten(0, (images, -1)).mean(0, keepdim=True).repeat(images, *[1] * weights.dim()), biases",
            "test_convolutions",
        ),
        (
            "A bias counts its positions once in all",
            "Formed([outputs.float().sum(1)])",
            "Formed([outputs.float().mean(1)])",
            "test_linear_layers",
        ),
        (
            "An embedding adds every image's gradient to the first one's",
            "of_image = torch.arange(images, device=x.device)[:, None] * entries",
            "of_image = 0 * torch.arange(images, device=x.device)[:, None] * entries",
            "test_embeddings",
        ),
    )
    + _of(
        "privacy/gradients/pieces.py",
        "privacy/gradients/test_layers.py",
        (
            "Gradients of one layer are added without their factors",
            "total.addmv_(piece.T, weights)",
            "total.add_(piece.sum(0))",
            "test_convolutions",
        ),
        (
            "The norm of a product is taken for that of one of its factors",
            "return row_norms(self._outputs) * row_norms(self._inputs)",
            "return row_norms(self._outputs)",
            "test_linear_layers",
        ),
    )
    + _of(
        "privacy/gradients/engine.py",
        "privacy/gradients/test_check.py",
        (
            "A network whose gradients the engine gets wrong is accepted",
            "if not float((ours - theirs).norm()) <=",
            "if False and not float((ours - theirs).norm()) <=",
            "test_as_many_positions_as_rows_are_refused_too",
        ),
        (
            "Layers that mix images are not looked for",
            "    _check_layers(module)\n",
            "",
            "test_what_the_engine_would_get_wrong_is_refused_by_name",
        ),
    )
)

_SCALE = "mechanism.noise_stddev / PER_STDDEV"
_STEP = _of(
    "privacy/dpsgd.py",
    "privacy/test_dpsgd.py",
    (
        "The noise is not scaled by the sensitivity",
        _SCALE,
        "mechanism.noise_multiplier / PER_STDDEV",
        "test_the_noise_has_the_accounted_scale_and_no_other_even_on_an_empty_batch",
    ),
    (
        "The noise is 5 % too small",
        _SCALE,
        f"0.95 * {_SCALE}",
        "test_the_noise_has_the_accounted_scale_and_no_other_even_on_an_empty_batch",
    ),
    (
        "The noise is 5 % larger than accounted",
        _SCALE,
        f"1.05 * {_SCALE}",
        "test_the_noise_has_the_accounted_scale_and_no_other_even_on_an_empty_batch",
    ),
    (
        "An empty batch gets no noise, and so is told from others",
        "random.normal(size)",
        "random.normal(size) * bool(clipped.value.any())",
        "test_the_noise_has_the_accounted_scale_and_no_other_even_on_an_empty_batch",
    ),
    (
        "Noise is added before clipping, not after",
        "released = points * (unit / mechanism.expected_batch_size)",
        "noisy = points * unit\n"
        "    released = noisy * min(1, mechanism.max_grad_norm / np.linalg.norm(noisy)) / mechanism.expected_batch_size",
        "test_the_noise_has_the_accounted_scale_and_no_other_even_on_an_empty_batch",
    ),
    (
        "All coordinates share one draw of noise",
        "random.normal(size)",
        "random.normal(1).repeat(size)",
        "test_no_two_coordinates_share_noise",
    ),
    (
        "Every step makes the same noise, from a fixed seed",
        "random.normal(size)",
        "np.random.default_rng(0).normal(size=size)",
        "test_two_steps_share_no_noise",
    ),
    (
        "Noise comes from torch's global generator, which a user may seed",
        "random.normal(size)",
        "torch.randn(size).double().numpy()",
        "test_the_divisor_is_the_expected_batch_size_whatever_the_batch_was",
    ),
    (
        "What is released is not rounded to the lattice, and its last bits tell the sum",
        "np.rint((exact - whole) + PER_STDDEV * normal)",
        "((exact - whole) + PER_STDDEV * normal)",
        "test_which_numbers_can_occur_does_not_tell_whether_an_image_was_there",
    ),
    (
        "Rounding is always down, which moves the noise",
        "np.rint((exact - whole) + PER_STDDEV * normal)",
        "np.floor((exact - whole) + PER_STDDEV * normal)",
        "test_every_lattice_point_is_as_likely_as_a_rounded_gaussian_has_it[0.0]",
    ),
    (
        "The whole part of a sum takes the last bits of the noise",
        "whole + np.rint((exact - whole) + PER_STDDEV * normal)",
        "np.rint(exact + PER_STDDEV * normal)",
        "test_the_noise_is_added_to_the_fraction_of_a_sum_however_large_its_whole_part_is",
    ),
    (
        "More numbers are drawn than the bounds on rounding hold for",
        "if size * steps > MOST_DRAWS",
        "if False",
        "test_more_numbers_than_the_bounds_on_rounding_hold_for_are_refused",
    ),
    (
        "A sum clipped to another norm than is accounted gets the accounted noise",
        "if clipped.sensitivity != mechanism.sensitivity",
        "if False",
        "test_a_sum_clipped_to_another_norm_than_is_accounted_is_refused",
    ),
)

_ROUNDING = _of(
    "privacy/accounting.py",
    "privacy/test_accounting.py",
    (
        "What rounding of noise may add to epsilon is left out",
        "+ numerics.EPSILON if texts",
        "if texts",
        "test_one_gaussian_costs_what_the_exact_formula_says_and_never_less",
    ),
) + _of(
    "privacy/budget.py",
    "privacy/test_ledger.py",
    (
        "The filter over runs leaves out what rounding of noise may add",
        "_budget(grant)\n    divergence",
        "budget_of_order(grant['epsilon'], grant['delta'], grant['order'])\n    divergence",
        "test_the_filter_leaves_room_for_what_rounding_of_noise_may_add",
    ),
)

_RANDOM = _of(
    "privacy/entropy.py",
    "privacy/test_entropy.py",
    (
        "All sources share one key",
        "secrets.token_bytes(32)",
        "bytes(32)",
        "test_two_sources_and_two_calls_share_no_draw",
    ),
    (
        "The key comes from numpy's generator, which a user may seed",
        "secrets.token_bytes(32)",
        "np.random.bytes(32)",
        "test_seeding_every_known_generator_does_not_reproduce_it",
    ),
    (
        "A source can be copied, and its noise made twice",
        'raise TypeError("SecretRandom',
        'return {} or TypeError("SecretRandom',
        "test_it_cannot_be_copied_or_stored",
    ),
    (
        "A key is used until its keystream repeats",
        "if self._used > 1 << 36",
        "if False",
        "test_a_key_is_replaced_long_before_its_keystream_would_repeat",
    ),
    (
        "A forked process draws the noise of its parent",
        " or os.getpid() != self._process",
        "",
        "test_a_forked_process_does_not_draw_the_noise_of_its_parent",
    ),
    (
        "The largest uniform draw is 1, and a coin of rate 1 may fall the wrong way",
        "(bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52",
        "(bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53",
        "test_the_outermost_keystreams_give_neither_0_nor_1_nor_infinite_noise",
    ),
    (
        "Normal draws are 2 % too small",
        "size = ndtri(below * 2.0**-64)",
        "size = 0.98 * ndtri(below * 2.0**-64)",
        "test_the_moments_of_normal_draws_are_those_of_the_standard_normal",
    ),
    (
        "Normal draws are made of 52 bits, and leave gaps beyond five deviations",
        "size = ndtri(below * 2.0**-64)",
        "size = ndtri((np.floor(below * 2.0**-12) + 0.5) * 2.0**-52)",
        "test_the_largest_normal_draws_lie_as_close_together_as_the_lattice_needs",
    ),
)

_SAMPLER = "test_the_sampler_has_the_property_and_a_wrong_sampler_has_not"
_POISSON = _of(
    "privacy/poisson.py",
    "privacy/test_poisson.py",
    (
        "Batches have a fixed size",
        "np.flatnonzero(random.uniform(num_images) + 2.0**-53 <= sample_rate)",
        "np.sort(random.uniform(num_images).argsort()[: int(num_images * sample_rate)])",
        f"{_SAMPLER}[binomial_size-fixed_size]",
    ),
    (
        "Batches are slices of a fixed order, as of a shuffled epoch",
        "np.flatnonzero(random.uniform(num_images) + 2.0**-53 <= sample_rate)",
        "np.sort((np.arange(int(num_images * sample_rate)) + int(random.uniform(1)[0] * num_images)) % num_images)",
        f"{_SAMPLER}[pairwise_independence-one_coin_for_two_images]",
    ),
    (
        "Images are drawn 5 % more often than accounted",
        "random.uniform(num_images) + 2.0**-53 <= sample_rate",
        "random.uniform(num_images) + 2.0**-53 <= sample_rate * 1.05",
        f"{_SAMPLER}[binomial_size-fixed_size]",
    ),
    (
        "Two images share one coin",
        "random.uniform(num_images) + 2.0**-53 <= sample_rate",
        "random.uniform(num_images // 2).repeat(2) <= sample_rate",
        f"{_SAMPLER}[pairwise_independence-one_coin_for_two_images]",
    ),
    (
        "The rate of a coin is rounded up",
        "+ 2.0**-53 <= sample_rate",
        "< sample_rate",
        "test_the_rate_of_a_coin_is_never_rounded_up",
    ),
)

_CAP = (
    _of(
        "privacy/poisson.py",
        "privacy/test_poisson.py",
        (
            "Batches above the cap are not cut",
            "    if largest is None:\n",
            "    if True:\n",
            "test_a_capped_sampler_has_the_property_and_a_wrong_one_has_not[is_cut_at_the_cap-never_cut]",
        ),
        (
            "Batches above the cap keep their first images",
            "np.sort(rows[places.argsort()[:largest]])",
            "rows[:largest]",
            "test_a_capped_sampler_has_the_property_and_a_wrong_one_has_not"
            "[keeps_each_image_equally_often-first_rows_kept]",
        ),
        (
            "Batches above the cap keep neighbours",
            "np.sort(rows[places.argsort()[:largest]])",
            "np.sort(np.roll(rows, int(places[:1].sum() * rows.size))[:largest])",
            "test_the_kept_images_are_independent_of_their_places",
        ),
        (
            "How much is drawn shows whether a batch was cut",
            "    if largest is None:\n",
            "    if largest is None or rows.size <= largest:\n",
            "test_how_much_is_drawn_does_not_depend_on_the_batch[5]",
        ),
    )
    + _of(
        "privacy/mechanisms.py",
        "privacy/test_mechanisms.py",
        (
            "Batches are cut, and accounted for as if they were not",
            "        if self.largest_batch_size is None:\n",
            "        if True:\n",
            "test_dp_sgd_with_a_cap_accounts_for_the_cap",
        ),
        (
            "The cap is accounted for as one that is never reached",
            "truncated_batch_size=self.largest_batch_size,",
            "truncated_batch_size=self.num_images,",
            "test_dp_sgd_with_a_cap_accounts_for_the_cap",
        ),
    )
    + _of(
        "generators/training/finetune.py",
        "generators/test_capped_batches.py",
        (
            "Fine-tuning ignores the cap",
            "random, mechanism.largest_batch_size)",
            "random)",
            "test_no_step_reads_more_images_than_the_cap[30-30]",
        ),
    )
    + _of(
        "privacy/crosscheck.py",
        "privacy/test_crosscheck.py",
        (
            "The lower bound takes a run with cut batches for one without",
            "compute_epsilon(delta + slack,",
            "compute_epsilon(delta,",
            "test_a_cap_that_is_hardly_ever_reached_leaves_the_interval_valid",
        ),
        (
            "The upper bound takes a run with cut batches for one without",
            "compute_epsilon(delta - slack,",
            "compute_epsilon(delta,",
            "test_a_cap_that_is_hardly_ever_reached_leaves_the_interval_valid",
        ),
        (
            "An interval is stated however often batches are cut",
            "if slack > delta / 10:",
            "if False:",
            "test_batches_that_are_cut_often_have_no_interval_and_the_reason_is_said",
        ),
        (
            "Privacy losses of many steps are folded back into too small a domain",
            "_tail(singles, delta_error / 12)",
            "0.2 * _tail(singles, delta_error / 12)",
            "test_epsilon_is_not_below_the_certified_bound_and_at_most_a_thousandth_above",
        ),
    )
)

_RENYI = _of(
    "privacy/renyi.py",
    "privacy/test_renyi.py",
    (
        "A Rényi budget forgets what delta costs",
        " + math.log(delta * order) / (order - 1)",
        "",
        "test_a_budget_is_what_the_conversion_turns_into_epsilon",
    ),
    (
        "A Rényi budget is that of the next order",
        " + math.log(delta * order) / (order - 1)",
        " + math.log(delta * order) / order",
        "test_a_budget_is_what_the_conversion_turns_into_epsilon",
    ),
    (
        "The Rényi bound counts repeated steps once",
        "return int(event.count) * _bound(event.event, order)",
        "return _bound(event.event, order)",
        "test_a_gaussian_costs_the_closed_form_and_repetitions_add_up",
    ),
    (
        "The Rényi bound takes batches with a cap for batches without",
        "    return max(untruncated, (larger",
        "    return min(untruncated, (larger",
        "test_a_truncated_batch_costs_at_least_the_integral_for_all_pairs_it_has_to_cover",
    ),
    (
        "The Rényi bound forgets that an image displaces another",
        "event.noise_multiplier / 2",
        "event.noise_multiplier * 1",
        "test_a_truncated_batch_costs_at_least_the_integral_for_all_pairs_it_has_to_cover",
    ),
    (
        "The Rényi bound forgets that the other data set is a mixture too",
        " - math.log1p(-kept)) * exponent",
        ") * exponent",
        "test_a_truncated_batch_costs_at_least_the_integral_for_all_pairs_it_has_to_cover",
    ),
    (
        "A cap that is reached too seldom for a float is never reached",
        "    return -others * (share",
        "    return -math.inf * (share",
        "test_a_cap_too_rare_for_a_float_is_bounded_not_forgotten",
    ),
)

_MECHANISMS = _of(
    "privacy/mechanisms.py",
    "privacy/test_mechanisms.py",
    (
        "One step less is accounted for than may run",
        "self.num_steps + self.restart_allowance)",
        "self.num_steps + self.restart_allowance - 1)",
        "test_dp_sgd_accounts_for_the_noise_the_rate_and_all_steps_that_may_run",
    ),
    (
        "Steps that a crash may repeat are not accounted for",
        "self.num_steps + self.restart_allowance)",
        "self.num_steps)",
        "test_dp_sgd_accounts_for_the_noise_the_rate_and_all_steps_that_may_run",
    ),
    (
        "The sampling rate is that of whole batches of an epoch",
        "return self.expected_batch_size / self.num_images",
        "return 1 / math.ceil(self.num_images / self.expected_batch_size)",
        "test_the_sample_rate_is_exact_not_one_over_the_batches_of_an_epoch",
    ),
    (
        "The sensitivity of several votes is taken for that of one",
        "return math.sqrt(self.num_votes)",
        "return 1.0",
        "test_the_query_accounts_for_the_noise_it_adds",
    ),
    (
        "Epsilon is stated under another relation than is promised",
        "RELATION = dpa.NeighboringRelation.REPLACE_SPECIAL",
        "RELATION = dpa.NeighboringRelation.ADD_OR_REMOVE_ONE",
        "test_the_relation_is_zero_out",
    ),
)

_ACCOUNTING = _of(
    "privacy/accounting.py",
    "privacy/test_accounting.py",
    (
        "Epsilon is optimistic by half a percent",
        "return float(accountant.get_epsilon(delta))",
        "return 0.995 * float(accountant.get_epsilon(delta))",
        "test_one_gaussian_costs_what_the_exact_formula_says_and_never_less",
    ),
    (
        "Epsilon is that of twice the delta",
        "return float(accountant.get_epsilon(delta))",
        "return float(accountant.get_epsilon(2 * delta))",
        "test_one_gaussian_costs_what_the_exact_formula_says_and_never_less",
    ),
    (
        "Only the first event is composed",
        "    for event in events:\n",
        "    for event in events[:1]:\n",
        "test_epsilon_of_query_and_dp_sgd_is_the_known_value",
    ),
    (
        "Calibration ignores the query that came before",
        "    spent = epsilon_of(prior, delta)\n",
        "    prior = []\n    spent = epsilon_of(prior, delta)\n",
        "test_calibrated_noise_meets_the_target_and_a_thousandth_less_does_not",
    ),
    (
        "Calibration ends a little below the noise that is needed",
        "    return math.exp(enough)\n",
        "    return math.exp(enough) * 0.999\n",
        "test_calibrated_noise_meets_the_target_and_a_thousandth_less_does_not",
    ),
    (
        "The grid of epsilon does not get finer with more steps",
        "max(epsilon, _SMALLEST_EPSILON) / math.sqrt(count)",
        "max(epsilon, _SMALLEST_EPSILON)",
        "test_epsilon_of_query_and_dp_sgd_is_the_known_value",
    ),
) + _of(
    "privacy/accounting.py",
    "privacy/test_ledger.py",
    (
        "What was chosen after a result is composed as if it had been fixed before",
        "return epsilon_of(own, delta_of_course(delta / 2, lost)) + before",
        "return epsilon_of([*own, *builds_on], delta_of_course(delta, lost))",
        "test_a_plan_that_builds_on_a_query_pays_for_it_again",
    ),
    (
        "An adaptive choice spends delta twice",
        "return epsilon_of(own, delta_of_course(delta / 2, lost)) + before",
        "return epsilon_of(own, delta) + epsilon_of(builds_on, delta)",
        "test_a_plan_that_builds_on_a_query_pays_for_it_again",
    ),
)

_QUERY = _of(
    "semantics/query.py",
    "semantics/test_query.py",
    (
        "An image may vote twice for one category",
        "if twice or not inside",
        "if not inside",
        "test_votes_that_would_break_the_sensitivity_are_refused",
    ),
) + _of(
    "privacy/counts.py",
    "semantics/test_query.py",
    (
        "The histogram has no noise",
        "measurement(points.ravel().tolist())",
        "points.ravel().tolist()",
        "test_released_noise_has_the_accounted_scale_and_no_other",
    ),
    (
        "The histogram's noise is halved",
        "return noisy.reshape(points.shape) / per_unit",
        "return (points + noisy.reshape(points.shape)) / per_unit / 2",
        "test_released_noise_has_the_accounted_scale_and_no_other",
    ),
    (
        "The histogram's noise is continuous and of numpy's global generator",
        "measurement(points.ravel().tolist())",
        "(points + mechanism.noise_stddev * per_unit * np.random.standard_normal(points.shape)).ravel()",
        "test_noise_lies_on_the_exact_lattice",
    ),
    (
        "The source for tests makes the noise of every release",
        "if insecure_random is not None",
        "if (insecure_random := insecure_random or InsecureRandomForTests(0)) is not None",
        "test_every_cell_has_noise_of_its_own_and_every_release_too",
    ),
    (
        "Noise that OpenDP does not confirm is added all the same",
        "if rho > 1.000001",
        "if False and rho > 1.000001",
        "test_noise_that_opendp_does_not_confirm_is_refused",
    ),
)

_CLASS_SUMS = _of(
    "privacy/class_sums.py",
    "privacy/test_class_sums.py",
    (
        "A vector of the class sums keeps its norm above 1",
        "rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1 / peaks)",
        "rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1 / peaks) / 2; return (rows * PER_UNIT).astype(int)",
        "test_zeroing_out_any_image_changes_one_sum_by_at_most_the_stated_sensitivity",
    ),
    (
        "Numbers of the class sums are rounded to the nearest point, and norms grow",
        "np.trunc(rows * PER_UNIT).astype(np.int64)\n",
        "np.rint(rows * PER_UNIT).astype(np.int64); return points\n",
        "test_no_rounding_makes_a_norm_grow",
    ),
    (
        "A vector of the class sums may be infinite",
        "rows[~np.isfinite(rows).all(axis=1)] = 0.0",
        "rows[np.isnan(rows).any(axis=1)] = 0.0",
        "test_vectors_that_are_not_finite_count_as_zero",
    ),
    (
        "The class sums have no noise",
        "return add_lattice_noise(sums, mechanism, per_unit=PER_UNIT, insecure_random=insecure_random)",
        "return sums / PER_UNIT",
        "test_released_sums_have_the_accounted_noise_and_no_other",
    ),
    (
        "The class sums have the noise of vectors in units of the lattice",
        "add_lattice_noise(sums, mechanism, per_unit=PER_UNIT,",
        "add_lattice_noise(sums, mechanism, per_unit=1,",
        "test_released_sums_have_the_accounted_noise_and_no_other",
    ),
    (
        "A label of the class sums may be out of range",
        "if private_labels.min() < 0 or",
        "if",
        "test_labels_and_shapes_that_would_break_the_sensitivity_are_refused",
    ),
)

_CLASS_MEANS = (
    _of(
        "pipeline/plans.py",
        "test_class_means.py",
        (
            "Class mean images are not fixed with the query",
            "intends=(*ahead.values(), *tuned, *_set_aside(config, facts)),",
            "intends=(*(e for s, e in ahead.items() if s != 'class_means'), *tuned, *_set_aside(config, facts)),",
            "test_nothing_is_opened_before_it_is_charged",
        ),
        (
            "Without a query, fine-tuning's noise leaves no room for class mean images",
            "_calibrated(config, facts, list(ahead.values()), _set_aside(config, facts), joined=True)",
            "_calibrated(config, facts, [e for s, e in ahead.items() if s != 'class_means'], _set_aside(config, facts), joined=True)",
            "test_what_they_open_without_a_query_is_a_plan_that_costs_the_runs_epsilon",
        ),
        (
            "Several class mean images are charged to one plan",
            "if mechanism.event not in plan.intends or rivals or",
            "if mechanism.event not in plan.intends or",
            "test_other_class_mean_images_are_not_charged_to_the_same_plan",
        ),
        (
            "Class mean images whose result was lost are not accounted with fine-tuning",
            'entry.body["stage"] in AHEAD]',
            'entry.body["stage"] == "query"]',
            "test_a_result_that_was_lost_is_charged_again_within_the_runs_epsilon",
        ),
    )
    + _of(
        "pipeline/charges.py",
        "test_class_means.py",
        (
            "Fine-tuning's own plan builds on the query alone",
            "for artifact in ahead for entry in artifact.manifest.reservations]",
            "for artifact in ahead[:1] for entry in artifact.manifest.reservations]",
            "test_another_warm_up_costs_nothing_but_its_own_fine_tuning_builds_on_what_was_seen",
        ),
        (
            "The lineage of a generator after its warm-up is not looked at",
            'check_lineage(inputs.get("warmup") or inputs["pretrain"], ahead)',
            'check_lineage(inputs["pretrain"], ahead) if "pretrain" in inputs and "warmup" not in inputs["pretrain"].ref.stage else 0',
            "test_a_generator_that_goes_back_to_them_is_not_fine_tuned_as_if_there_had_been_none",
        ),
    )
    + _of(
        "stages/class_means.py",
        "test_class_means.py",
        (
            "Class mean images of reproducible noise are said to be private",
            "guarantee=guarantee_of(random.guarantee, query is None or query.is_guaranteed)",
            "guarantee=guarantee_of(query is None or query.is_guaranteed)",
            "test_reproducible_noise_leaves_no_guarantee",
        ),
    )
    + _of(
        "release/verify.py",
        "test_class_means.py",
        (
            "Verification believes a certificate that leaves class mean images out",
            '"class_means": certificate.class_mean_images,',
            '"class_means": "class_means" in {m.stage for m in certificate.mechanisms},',
            "test_a_certificate_that_hides_them_does_not_verify",
        ),
    )
    + _of(
        "semantics/class_means.py",
        "semantics/test_class_means.py",
        (
            "Differences are twice as long as their bound says",
            "/ self.max_norm",
            "/ self.max_norm * 2",
            "test_sums_of_differences_give_back_the_class_means_where_no_image_is_cut",
        ),
    )
)

_MEAN_EMBEDDING = (
    _of(
        "generators/mean_embedding/matching.py",
        "privacy/test_mean_embedding_neighbours.py",
        (
            "An image's embedding depends on the images beside it",
            "found = self.features(images) * ",
            "found = self.features(images - images.mean(0)) * ",
            "test_no_image_moves_the_sums_by_more_than_one_nor_those_of_another_class",
        ),
        (
            "The lengthscale of the embedding is that of the sensitive images",
            "found = self.features(images) * ",
            "found = self.features(images / float(self.private_images.std() / 100)) * ",
            "test_no_image_moves_the_sums_by_more_than_one_nor_those_of_another_class",
        ),
    )
    + _of(
        "pipeline/plans.py",
        "test_rehearsal.py",  # which finds it before any other test has a run to look at
        (
            "An embedding is drawn with the noise of its plan's query",
            "intends = opened.intends[sum(map(bool, ahead_of_it)) :]",
            "intends = opened.intends[0:]",
            "test_a_run_of_each_kind_can_go_its_whole_way_on_made_up_images_and_leaves_nothing[mean embedding]",
        ),
    )
    + _of(
        "release/certify.py",
        "stages/test_mean_embedding_run.py",
        (
            "A certificate says that an embedding was made in Poisson batches",
            "if config.generator.finetunes and not config.generator.is_charged_as(events[tuned]):",
            "if False:",
            "test_no_certificate_tells_of_another_kind_of_generator",
        ),
    )
    + _of(
        "release/datasheet.py",
        "stages/test_critic_run.py",
        (
            "Public images are released, and the datasheet says that no image is real",
            "(_PUBLIC if facts.num_public else _SYNTHETIC)",
            "(_SYNTHETIC if facts.num_public else _SYNTHETIC)",
            "test_public_images_are_released_on_request_alone_for_free_and_it_is_said[semantic]",
        ),
    )
    + _of(
        "reports/contents.py",
        "stages/test_critic_run.py",
        (
            "Public images are released, and the report says that every image is generated",
            "    some = is_public.any()",
            "    some = False",
            "test_public_images_are_released_on_request_alone_for_free_and_it_is_said[semantic]",
        ),
    )
    + _of(
        "generators/mean_embedding/choice.py",
        "stages/test_choice.py",
        (
            "Public images are released under classes that they were not selected for",
            "    agreed_too = _seen_by(critic, further, features.device) == of_class",
            "    of_class = _seen_by(critic, further, features.device)\n    agreed_too = of_class >= 0",
            "test_public_images_are_told_from_painted_ones",
        ),
    )
    + _of(
        "generators/mean_embedding/mixing.py",
        "generators/test_mixing.py",
        (
            "What is released as a mixture is one public image, decoded",
            "second = (first + torch.randint(1, len(rows), (each,), generator=random)) % len(rows)",
            "second = first",
            "test_each_mixture_is_of_two_images_of_its_class",
        ),
    )
    + _of(
        "generators/mean_embedding/critic.py",
        "stages/test_critic_run.py",
        (
            "The critic compares each sensitive image with those beside it",
            "network.to(device).eval().requires_grad_(False)",
            "network.to(device).train().requires_grad_(False)",
            "test_what_the_critic_sees_has_norm_one_and_is_of_one_image_alone[semantic]",
        ),
    )
)

_ONE_IMAGE = "test_one_image_moves_the_released_gradient_by_its_bound_however_many_noise_draws_it_has"
_DRAWS_OF_A_STEP = "test_each_step_draws_one_coin_an_image_and_noise_for_every_parameter_and_no_step_too_many"
_NO_IMAGE_MOVES_THE_DISCRIMINATOR = (
    "test_no_image_moves_the_discriminators_step_by_more_than_is_accounted_nor_anything_but_the_sum[1-1000]"
)
_FINETUNE = (
    _of(
        "generators/training/private_sum.py",
        "generators/test_finetune.py",
        (
            "The draws of one image are images of their own, each clipped separately",
            "                draws=self.config.noise_samples,\n                max_grad_norm",
            "                draws=1,\n                max_grad_norm",
            f"{_ONE_IMAGE}[8]",
        ),
        (
            "Images are clipped to twice the norm that the sum states",
            "max_grad_norm=self.max_grad_norm,",
            "max_grad_norm=2 * self.max_grad_norm,",
            _ONE_IMAGE,
        ),
    )
    + _of(
        "generators/training/finetune.py",
        "privacy/test_gan_neighbours.py",
        (
            "The painter learns from a discriminator that took a step without noise",
            "following = generator.follow(state.weights, config, step=state.step, seed=seed)",
            "exact = zip(learned, clipped.value.split(sizes), strict=True)\n"
            "            other = {name: state.weights[name] - part.view_as(state.weights[name]) for name, part in exact}\n"
            "            following = generator.follow({**state.weights, **other}, config, step=state.step, seed=seed)",
            _NO_IMAGE_MOVES_THE_DISCRIMINATOR,
        ),
    )
    + _of(
        "generators/gan/gan.py",
        "privacy/test_gan_neighbours.py",
        (
            "Fakes are painted once for all images of a block, from what its images look like",
            "return x, self._paint(weights, latent, shown), shown",
            "return x, self._paint(weights, latent + x.mean(), shown), shown",
            _NO_IMAGE_MOVES_THE_DISCRIMINATOR,
        ),
        (
            "The loss of a pair is taken relative to that of the whole batch",
            "losses: Tensor = functional.relu(1 - network(images, labels)) + functional.relu(1 + network(fakes, labels))",
            "losses: Tensor = functional.relu(1 - network(images, labels) + network(fakes, labels).mean())",
            _NO_IMAGE_MOVES_THE_DISCRIMINATOR,
        ),
    )
    + _of(
        "generators/diffusion/denoiser.py",
        "generators/test_finetune.py",
        (
            "Labels are hidden once a draw",
            "hidden = torch.rand(count, generator=generator, device=device) < config.label_dropout\n"
            "    shown = torch.where(hidden, no_label, labels.to(device)).repeat_interleave(draws)",
            "hidden = torch.rand(count * draws, generator=generator, device=device) < config.label_dropout\n"
            "    shown = torch.where(hidden, no_label, labels.to(device).repeat_interleave(draws))",
            "test_labels_are_hidden_once_an_image_and_noise_drawn_for_each_draw",
        ),
    )
    + _of(
        "generators/training/private_sum.py",
        "generators/test_workers.py",
        (
            "Every device adds up the whole batch",
            "mine = range(part, ",
            "mine = range(0 * part, ",
            "test_fine_tuning_in_several_processes_releases_what_one_does_with_noise_added_once[2]",
        ),
    )
    + _of(
        "generators/training/workers.py",
        "generators/test_workers.py",
        (
            "What another process says of a batch when it fails is printed",
            "    sys.stderr = _Line(end)\n",
            "",
            "test_a_process_that_fails_tells_the_first_one_why_and_nobody_else",
        ),
    )
    + _of(
        "generators/training/finetune.py",
        "generators/test_finetune.py",
        (
            "The noise is divided by the number of draws",
            "flat = noisy_mean_gradient(clipped, mechanism, random)",
            "exact = clipped.value / mechanism.expected_batch_size\n"
            "            flat = exact + (noisy_mean_gradient(clipped, mechanism, random) - exact) / config.noise_samples",
            "test_an_empty_batch_takes_its_noisy_step",
        ),
        (
            "The divisor is the true size of the batch",
            "flat = noisy_mean_gradient(clipped, mechanism, random)",
            "flat = noisy_mean_gradient(clipped, mechanism, random) * mechanism.expected_batch_size / max(1, len(rows))",
            "test_an_empty_batch_takes_its_noisy_step",
        ),
        (
            "Noise is added once for each chunk",
            "flat = noisy_mean_gradient(clipped, mechanism, random)",
            "exact = clipped.value / mechanism.expected_batch_size\n"
            "            flat = noisy_mean_gradient(clipped, mechanism, random)\n"
            "            for _ in range(compute.rows_at_once, len(rows), compute.rows_at_once):\n"
            "                flat = flat + noisy_mean_gradient(clipped, mechanism, random) - exact",
            _DRAWS_OF_A_STEP,
        ),
        (
            "Weights follow the sum without noise",
            "flat.split(sizes)",
            "(clipped.value / mechanism.expected_batch_size).split(sizes)",
            "test_an_empty_batch_takes_its_noisy_step",
        ),
        (
            "The averaged weights follow the sum without noise",
            "ema_update(state.ema, state.weights, decay=config.ema_decay, step=state.step)",
            "ema_update(state.ema, {name: state.ema[name] - part.view_as(state.ema[name]) for name, part in "
            "zip(state.ema, clipped.value.split(sizes), strict=True)}, decay=config.ema_decay, step=state.step)",
            "test_the_average_is_one_of_the_released_weights",
        ),
        (
            "One step more runs than is accounted for",
            "while state.step < mechanism.num_steps",
            "while state.step < mechanism.num_steps + 1",
            _DRAWS_OF_A_STEP,
        ),
        (
            "Two steps use the same coins",
            "rows = poisson_batch(",
            "rows = rows if state.step % 2 else poisson_batch(",
            _DRAWS_OF_A_STEP,
        ),
        (
            "A layer that mixes images is not looked for",
            "    work.check(*private_images.shape[1:3])\n",
            "",
            "test_a_layer_that_mixes_images_is_refused_before_anything_is_drawn",
        ),
        (
            "More images are used than the sampling rate was made for",
            "if len(private_images) != mechanism.num_images",
            "if len(private_images) < mechanism.num_images",
            "test_another_number_of_images_than_is_accounted_is_refused[47]",
        ),
    )
)

_SPENDING = _of(
    "privacy/ledger.py",
    "privacy/test_ledger.py",
    (
        "A reservation is written without a look at the budget",
        "            check_budget(self.dataset_id, entries, plan, num_images=num_images, event=event)",
        "            return None",
        "test_more_than_is_left_is_refused_with_both_numbers_and_nothing_is_written[memory]",
    ),
) + _of(
    "privacy/budget.py",
    "privacy/test_ledger.py",
    (
        "A grant is said to hold more than is left of it",
        "left = (1 - spent.share) *",
        "left = (1.1 - spent.share) *",
        "test_a_run_of_what_is_said_to_be_left_is_let_in_and_one_of_a_little_more_is_not",
    ),
    (
        "What is set aside for other plans is given away",
        "    return reserved + pending",
        "    return reserved",
        "test_what_a_plan_still_intends_is_set_aside",
    ),
    (
        "Two intended mechanisms of one shape count as one",
        "for event in reserved if event not in intends)",
        "for event in reserved)",
        "test_what_a_plan_still_intends_is_set_aside",
    ),
    (
        "The filter does not look at the other plans",
        "asked + taken > _ROUNDING",
        "asked > _ROUNDING",
        "test_all_that_the_filter_lets_through_together_keeps_the_grant_s_epsilon",
    ),
    (
        "A plan is weighed by what it said, not by what it reserves",
        "_committed(own, False, more, intends))",
        "intends)",
        "test_a_plan_may_not_take_more_noise_away_than_it_said",
    ),
    (
        "A later plan may take the grant by its own bound",
        "    if alone or asked + taken",
        "    if asked + taken",
        "test_that_is_for_the_first_plan_only",
    ),
    (
        "Beside a plan that has the whole grant others are opened",
        "        if _is_whole(grant, members):",
        "        if False:",
        "test_a_plan_that_has_the_whole_grant_keeps_it_when_it_is_closed",
    ),
    (
        "A closed plan goes on",
        "    if plan.id in closed:",
        "    if False:",
        "test_a_closed_plan_gives_up_what_it_had_set_aside_and_no_more",
    ),
    (
        "A closed plan's reservations are forgotten",
        "    if closed:\n        return reserved",
        "    if closed:\n        return []",
        "test_a_closed_plan_gives_up_what_it_had_set_aside_and_no_more",
    ),
    (
        "Void and valid reservations are mixed up",
        'states[e.id] != "void"}',
        'states[e.id] != "settled"}',
        "test_a_voided_reservation_frees_its_budget_and_can_do_nothing_more",
    ),
    (
        "A run of another delta than the grant's is charged",
        '    if delta != grant["delta"]:',
        "    if False:",
        "test_a_run_of_another_delta_than_the_grant_s_is_refused[1e-05]",
    ),
    (
        "A run of a larger epsilon than the grant is charged",
        '    if epsilon > grant["epsilon"] * _ROUNDING:',
        "    if False:",
        "test_a_run_of_a_larger_epsilon_than_the_grant_is_refused",
    ),
    (
        "A delta that promises nothing for a larger set is taken",
        "    if not delta < 1 / num_images:",
        "    if False:",
        "test_a_set_so_large_that_the_grant_s_delta_promises_nothing_is_refused",
    ),
    (
        "A plan may cost more than its target",
        "if cost > plan.epsilon * _ROUNDING",
        "if False",
        "test_a_plan_stays_within_its_own_target",
    ),
    (
        "Building on an earlier query is free",
        "before = [reservations[member] for member in sorted(paid)]",
        "before: list[Entry] = []",
        "test_a_plan_that_builds_on_a_query_pays_for_it_again",
    ),
    (
        "What a plan built on is forgotten by its next reservation",
        '.union(*(entry.body["plan"]["builds_on"] for entry in own))',
        "",
        "test_what_a_plan_once_built_on_stays_part_of_it",
    ),
    (
        "A plan may build on what was never paid",
        "missing = [paid for paid in plan.builds_on if paid not in reservations]",
        "missing = []",
        "test_building_on_what_was_never_paid_is_refused",
    ),
    (
        "Any mechanism may enter a plan later",
        "if event is not None and event_shape(event) not in",
        "if False and event_shape(event) not in",
        "test_a_mechanism_that_was_not_fixed_when_its_plan_was_opened_does_not_enter_it",
    ),
    (
        "A plan's later reservations say anew what it was opened for",
        'intends = Plan.from_json(own[0].body["plan"]).intends if own else plan.intends',
        "intends = plan.intends",
        "test_a_mechanism_that_was_not_fixed_when_its_plan_was_opened_does_not_enter_it",
    ),
    (
        "Deltas of several plans are not added",
        "delta=sum(plan.delta for plan in plans)",
        "delta=max((plan.delta for plan in plans), default=0.0)",
        "test_two_plans_add_epsilon_and_delta",
    ),
    (
        "A grant for another relation is taken",
        'if grant["adjacency"] != RELATION.name',
        "if False",
        "test_a_grant_for_another_relation_is_refused",
    ),
)

_LIFE = _of(
    "privacy/ledger.py",
    "privacy/test_ledger.py",
    (
        "A closed reservation still counts as live",
        'if found != "open"',
        'if found == "absent"',
        "test_a_reservation_lives_until_it_is_settled[memory]",
    ),
    (
        "Settling does not look whether the reservation is closed",
        'if entry.kind in ("settle", "void") and entry.body["reservation"] == reservation.id',
        "if False",
        "test_settling_again_is_no_error_and_with_another_artifact_is",
    ),
    (
        "A settled charge can be voided",
        "            reservation.check_live_in(entries)\n            if any(e.kind",
        "            if any(e.kind",
        "test_what_was_settled_is_not_given_back",
    ),
    (
        "A charge that was built on can be voided",
        'if any(e.kind == "reserve" and reservation.id in e.body["plan"]["builds_on"] for e in entries)',
        "if False",
        "test_what_has_been_built_on_is_not_given_back",
    ),
    (
        "A charge that another attempt took over can be voided",
        "            if _resumes(entries, reservation.id):",
        "            if False:",
        "test_what_another_attempt_took_over_is_not_given_back",
    ),
    (
        "Resuming costs none of the restart allowance",
        '"lost_steps": lost, "guarantee"',
        '"lost_steps": 0, "guarantee"',
        "test_each_resume_counts_the_steps_it_may_repeat_until_the_allowance_is_used_up",
    ),
    (
        "The restart allowance may be passed once",
        "if used + lost > allowance",
        "if used > allowance",
        "test_each_resume_counts_the_steps_it_may_repeat_until_the_allowance_is_used_up",
    ),
    (
        "A resume after any pause loses nothing",
        'return bool(life) and life[-1].kind == "pause"',
        'return any(e.kind == "pause" for e in life)',
        "test_an_attempt_that_paused_has_lost_nothing[memory]",
    ),
    (
        "An attempt that was taken over may say that it paused",
        "            _check_attempt(reservation, entries, attempt)\n\n        self",
        "            pass\n\n        self",
        "test_an_attempt_that_was_taken_over_cannot_say_that_it_paused",
    ),
    (
        "An attempt that was taken over goes on",
        "if latest != attempt",
        "if latest < attempt",
        "test_an_attempt_that_was_taken_over_stops[memory]",
    ),
)

_CHAIN = _of(
    "privacy/chain.py",
    "privacy/test_ledger.py",
    (
        "The chain of digests is not verified",
        "if entry.sequence != number or entry.previous != previous",
        "if entry.sequence != number",
        "test_an_entry_that_was_edited_is_noticed",
    ),
    (
        "A gap in the ledger is not noticed",
        "            if expected != found",
        "            if False",
        "test_a_missing_entry_is_noticed",
    ),
    (
        "A newest entry that vanishes is not noticed",
        "if len(numbers) < len(self._entries)",
        "if False",
        "test_a_last_entry_that_vanishes_under_a_running_process_is_noticed",
    ),
    (
        "A second grant can be put in by hand",
        'if (entry.kind == "grant") != (number == 0)',
        "if False",
        "test_a_second_grant_put_in_by_hand_is_refused",
    ),
    (
        "After a lost race the budget is not checked again",
        "            existing = check(entries)\n",
        "            existing = check(entries) if attempt == 0 else None\n",
        "test_the_budget_is_checked_again_after_a_lost_race",
    ),
    (
        "A clock that runs backwards is not noticed",
        "if entries and now + CLOCK_TOLERANCE <",
        "if False and now + CLOCK_TOLERANCE <",
        "test_a_clock_that_runs_backwards_writes_nothing",
    ),
    (
        "A settled charge can be given back by an entry put in by hand",
        'if about is not None and self._reservations.get(about) != "open"',
        "if False",
        "test_an_entry_that_contradicts_an_earlier_one_is_refused",
    ),
    (
        "Of two reservations with one id, one is forgotten",
        "if entry.id in self._reservations",
        "if False",
        "test_two_reservations_of_one_id_are_refused",
    ),
)

_ENTRIES = [
    *_of(
        "privacy/entry.py",
        "privacy/test_ledger.py",
        (
            "A mechanism of a newer version is read as if it were none",
            '    if entry.kind == "reserve":\n        try',
            '    if entry.kind == "void":\n        try',
            "test_a_mechanism_of_a_newer_version_is_refused_with_the_entry_s_number",
        ),
        (
            "A plan may have a delta of nothing",
            "_Delta = Annotated[float, Field(gt=0, lt=1)]",
            "_Delta = Annotated[float, Field(lt=1)]",
            "test_a_last_entry_with_a_number_that_is_none_is_refused",
        ),
    ),
    *_of(
        "privacy/events.py",
        "privacy/test_ledger.py",
        (
            "A noise of less than nothing is read",
            "or not 0 <= found <= largest",
            "or not found <= largest",
            "test_a_last_entry_with_a_number_that_is_none_is_refused",
        ),
        (
            "A negative count of steps makes room in the budget",
            "or not 1 <= found <= _MOST",
            "or not found <= _MOST",
            "test_a_last_entry_with_a_number_that_is_none_is_refused",
        ),
    ),
]

_LEDGERS = _of(
    "running/ledgers.py",
    "test_ledgers.py",
    (
        "A set that was charged elsewhere gets a fresh ledger",
        "    if found in (None, name):",
        "    if True:",
        "test_a_set_that_was_charged_somewhere_is_charged_nowhere_else[hospital-a-None-state the sensitive.shared_ledger "
        "that was stated first]",
    ),
    (
        "Sets that share people have budgets of their own",
        "facts.identity if shared is None else",
        "facts.identity if True else",
        "test_sets_that_name_the_same_ledger_share_it",
    ),
    (
        "Which ledger a set is charged to is not settled",
        'store.create(_file(store, facts), json.dumps({"ledger": name}).encode())',
        "_file(store, facts)",
        "test_a_set_that_was_charged_somewhere_is_charged_nowhere_else[hospital-a-None-state the sensitive.shared_ledger "
        "that was stated first]",
    ),
)

_CHARGING = _of(
    "running/charging.py",
    "test_runner.py",
    (
        "Images are opened before anything was reserved",
        "elif self._reservation is None:\n"
        '            raise Uncharged(f"Stage {name} has no reservation: the {split} images stay closed.")\n'
        "        else:",
        "elif self._reservation is not None:",
        "test_training_images_open_under_a_live_reservation_only",
    ),
    (
        "Images are opened under a settled reservation",
        "            self._reservation.check_live()\n",
        "            pass\n",
        "test_training_images_open_under_a_live_reservation_only",
    ),
    (
        "Test images are opened for a stage that is not sealed",
        'elif split == "test":',
        "elif False:",
        "test_test_images_stay_closed_for_every_stage_that_is_not_sealed",
    ),
    (
        "Training images are opened without a charge for a stage whose artifact may leave",
        "if self._stage.sealed and split in self._stage.opens:",
        "if split in self._stage.opens:",
        "test_only_a_sealed_stage_opens_training_images_without_a_charge",
    ),
    (
        "A sealed stage opens every split without a charge",
        "if self._stage.sealed and split in self._stage.opens:",
        "if self._stage.sealed:",
        "test_only_a_sealed_stage_opens_training_images_without_a_charge",
    ),
    (
        "A charge whose run was killed does not count in the certificate",
        "reservations = [*earlier, live]",
        "reservations = [live]",
        "test_a_query_that_was_killed_is_charged_again_in_the_same_plan",
    ),
) + _of(
    "running/charging.py",
    "test_crash.py",
    (
        "Steps whose checkpoint is damaged are run again unaccounted",
        "attempt = ledger.resume(live, repeated=repeated, guarantee",
        "attempt = ledger.resume(live, guarantee",
        "test_a_damaged_checkpoint_is_passed_over_and_the_steps_it_held_are_charged_to_the_allowance",
    ),
)

_GIVEN_BACK = _of(
    "running/charging.py",
    "privacy/test_faults.py",
    (
        "What was given back meanwhile pays for an artifact",
        "reservations = [*earlier, live]",
        "reservations = [*left_open, live]",
        "test_a_reservation_that_is_given_back_meanwhile_pays_for_nothing",
    ),
)

_CHECKPOINTS = _of(
    "store/checkpoints.py",
    "store/test_checkpoints.py",
    (
        "A checkpoint that another process drops is taken for damaged, and its steps are charged again",
        "            if names == before:\n",
        "            if True:\n",
        "test_a_checkpoint_that_is_dropped_while_it_is_looked_for_is_not_damaged",
    ),
)

_REHEARSAL = _of(
    "running/runner.py",
    "test_rehearsal.py",
    (
        "What could fail after the charge is not tried out before it",
        "        stage.rehearse(run.config, public)\n",
        "        pass\n",
        "test_a_device_that_runs_out_of_memory_does_so_before_the_charge",
    ),
)

_CHECKED_BEFORE = [
    Mutant(
        name="The way to the release is not gone before the charge",
        file="privimage/running/rehearsal.py",
        old="    with scratch_folder(store) as folder:\n        _release(config, facts, public, folder)\n",
        new="",
        test="test_rehearsal.py::test_what_the_release_would_refuse_is_refused_before_the_charge",
    ),
    Mutant(
        name="A charge that goes by no check is not rehearsed",
        file="privimage/running/runner.py",
        old="        _rehearse(run, origins[0], facts)\n",
        new="        pass\n",
        test="test_rehearsal.py::test_a_stage_that_is_run_by_itself_is_rehearsed_before_its_charge",
    ),
    Mutant(
        name="What the ledger would refuse is trained first",
        file="privimage/running/plan.py",
        old="    if plan.refused:\n        raise plan.refused\n",
        new="    return\n",
        test="test_plan.py::test_what_the_grant_does_not_hold_is_refused_before_anything_is_trained[run]",
    ),
    Mutant(
        name="A grant is for any delta",
        file="privimage/privacy/ledger.py",
        old="SMALLEST_DELTA <= delta < 1 / num_images",
        new="0 < delta < 1 / num_images",
        test="test_cli.py::test_a_grant_of_nothing_or_everything_or_of_what_no_accountant_can_use_is_refused[1-1e-100]",
    ),
    Mutant(
        name="What a fault of the storage has lost is said to be nothing",
        file="privimage/store/files.py",
        old='_AGAIN = "run again: it goes on from what the store holds then."',
        new='_AGAIN = "run again: nothing is lost."',
        test="store/test_s3_faults.py::test_no_advice_promises_what_a_storage_that_fails_cannot_tell",
    ),
]

_RUNNER = _of(
    "running/runner.py",
    "test_private_errors.py",
    (
        "A foreign error leaks what it says of open images",
        "foreign = isinstance(error, Exception) and not isinstance(error, PrivimageError)",
        "foreign = False",
        "test_a_foreign_error_with_open_images_is_told_in_a_private_file_only",
    ),
    (
        "A charge is given back after images were opened under it",
        "if payment and not door.opened",
        "if payment",
        "test_a_foreign_error_with_open_images_is_told_in_a_private_file_only",
    ),
) + _of(
    "running/runs.py",
    "test_runner.py",
    (
        "A sealed stage's key is a plain hash",
        "return blind(run.store, key) if stage.sealed else key",
        "return key",
        "test_sealed_keys_and_digests_are_no_plain_hashes",
    ),
)

_STAGES = _of(
    "pipeline/plans.py",
    "test_rehearsal.py",  # which finds it before any other test has a run to look at
    (
        "The query is not composed with fine-tuning",
        "_calibrated(config, facts, list(ahead.values()), _set_aside(config, facts), joined=True)",
        "_calibrated(config, facts, [e for s, e in ahead.items() if s != 'query'], _set_aside(config, facts), joined=True)",
        "test_a_run_of_each_kind_can_go_its_whole_way_on_made_up_images_and_leaves_nothing[usual]",
    ),
) + _of(
    "generators/training/gradients.py",
    "test_private_errors.py",
    (
        "An earlier attempt with reproducible noise is forgotten",
        '**_ungrouped(tensors)), guaranteed and about["guarantee"]',
        "**_ungrouped(tensors)), guaranteed",
        "test_an_attempt_with_reproducible_noise_voids_the_guarantee_of_the_one_that_goes_on",
    ),
)

_DATA = _of(
    "data/splits.py",
    "data/test_admission.py",
    (
        "The split of an image depends on how many came before it",
        "hmac.digest(key, digests[row], hashlib.sha256)",
        "hmac.digest(key, row.to_bytes(8), hashlib.sha256)",
        "test_splits_and_identity_survive_renaming_reordering_and_another_container",
    ),
    (
        "The order of the splits needs no key",
        "hmac.digest(key, digests[row], hashlib.sha256)",
        "hashlib.sha256(digests[row]).digest()",
        "test_nobody_knows_the_order_without_the_key",
    ),
) + _of(
    "store/artifacts.py",
    "store/test_artifacts.py",
    (
        "The digest of a sealed artifact is a plain hash",
        "return blind(store, plain) if sealed else plain",
        "return plain",
        "test_a_sealed_digest_is_blinded_by_a_key_of_the_store",
    ),
)

_FILES = (
    _of(
        "data/admission.py",
        "data/test_private_decoder.py",
        (
            "Sensitive images are decoded where their C libraries speak to everybody",
            "_prepared_privately(train, decoder)",
            "_prepared_privately(train, partial(decode, config=image))",
            "test_what_libtiff_says_of_a_sensitive_file_is_in_the_private_list_alone",
        ),
    )
    + _of(
        "data/listing.py",
        "data/test_odd_zips.py",
        (
            "Of two files of one path both count",
            "if times[file.path] > 1",
            "if times[file.path] > 2",
            "test_two_members_of_one_path_are_both_refused",
        ),
        (
            "What lies below ./ is taken for hidden",
            'if part not in ("", ".")]',
            "if part]",
            "test_members_below_dot_slash_are_where_they_are_without",
        ),
    )
    + _of(
        "data/folder_source.py",
        "data/test_odd_folders.py",
        (
            "What lies beside the class folders is dropped in silence",
            "        elif not is_about_the_set(file.path):\n",
            "        elif False:\n",
            "test_texts_about_the_set_may_lie_beside_the_classes_and_nothing_else",
        ),
    )
    + _of(
        "data/local_files.py",
        "data/test_odd_folders.py",
        (
            "Links that lead in circles are followed",
            "            if identity in inside:\n",
            "            if len(inside) > 5:\n",
            "test_links_that_lead_in_circles_are_refused_and_no_image_counts_twice",
        ),
    )
    + _of(
        "data/metadata.py",
        "data/test_odd_images.py",
        (
            "Of several pages all but the first are dropped in silence",
            'if image.format in _FRAMES_OF_ONE or getattr(image, "n_frames", 1) == 1:',
            "if True:",
            "test_a_file_of_several_pages_is_refused_and_not_cut_to_the_first",
        ),
    )
    + _of(
        "data/decode.py",
        "data/test_odd_images.py",
        (
            "A gray picture that is saved as RGB is another one",
            "if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():",
            "if False:",
            "test_a_gray_picture_has_one_digest_in_every_mode",
        ),
        (
            "A picture with an alpha channel that is opaque is another one",
            'np.asarray(flat if flat.mode in ("L", "RGB") else flat.convert("RGB"))',
            'np.asarray(image if image.mode == "RGBA" else flat.convert("RGB"))',
            "test_a_gray_picture_has_one_digest_in_every_mode",
        ),
    )
    + _of(
        "data/class_names.py",
        "data/test_class_names.py",
        (
            "Two Unicode forms of one name are two classes",
            "    return composed(",
            "    return str(",
            "test_names_that_look_the_same_are_refused",
        ),
        (
            "A class name that is no UTF-8 is found after the charge",
            'unicodedata.category(character) == "Cs"',
            'unicodedata.category(character) == "Cn"',
            "test_a_name_that_cannot_be_published_is_refused_by_every_source",
        ),
    )
    + _of(
        "data/clutter.py",
        "data/test_odd_folders.py",
        (
            "A network storage's small copies count as images",
            '"@eadir", ',
            "",
            "test_what_a_system_leaves_behind_is_no_class_and_no_image",
        ),
    )
    + _of(
        "data/structure.py",
        "data/test_odd_folders.py",
        (
            "Test images become training images of a class called test",
            "    if len(splits) > 1 or twice or alone:\n",
            "    if False:\n",
            "test_splits_above_the_classes_are_refused_with_the_setting_that_names_one",
        ),
    )
    + _of(
        "data/parquet_files.py",
        "data/test_odd_parquet.py",
        (
            "The files of a test split become training images",
            "        if len(set(splits.values())) > 1:\n",
            "        if False:\n",
            "test_splits_in_one_folder_are_refused_with_the_setting_that_names_one",
        ),
    )
    + _of(
        "data/parquet_source.py",
        "data/test_odd_parquet.py",
        (
            "A message names a file of a folder of sensitive tables",
            'raise DataError(f"{origin} is no readable Parquet file',
            'raise DataError(f"{file} is no readable Parquet file',
            "test_no_message_names_a_file_of_a_folder",
        ),
    )
    + _of(
        "data/problems.py",
        "data/test_private_list.py",
        (
            "A file name can write lines of its own into the private list",
            'in ("Cc", "Cs", "Zl", "Zp")',
            'in ("Cs",)',
            "test_a_name_is_one_line_whatever_it_holds",
        ),
    )
)

_FEATURE_MEANS = (
    _of(
        "pipeline/plans.py",
        "test_feature_means.py",
        (
            "Feature means are not composed with fine-tuning",
            "_calibrated(config, facts, list(ahead.values()), _set_aside(config, facts), joined=True)",
            "_calibrated(config, facts, [e for s, e in ahead.items() if s != 'feature_means'], _set_aside(config, facts), joined=True)",
            "test_all_that_the_run_pays_costs_its_epsilon_whether_it_fine_tunes_or_not",
        ),
    )
    + _of(
        "pipeline/preflight.py",
        "test_feature_means.py",
        (
            "Feature means take epsilon as if nothing else were paid",
            "epsilon=epsilon, delta=delta, prior=others)",
            "epsilon=epsilon, delta=delta, prior=[])",
            "test_all_that_the_run_pays_costs_its_epsilon_whether_it_fine_tunes_or_not",
        ),
    )
    + _of(
        "pipeline/charges.py",
        "test_feature_means.py",
        (
            "Feature means that were interrupted are charged a second time in their plan",
            'if stage == "feature_means" and ledger.open_reservations(stage, key):',
            "if False:",
            "test_what_was_interrupted_is_not_charged_twice_because_nothing_could_make_up_for_it",
        ),
    )
    + _of(
        "release/verify.py",
        "test_feature_means.py",
        (
            "Verification believes a certificate that leaves feature means out",
            '"feature_means": selection.asks_feature_means,',
            '"feature_means": "feature_means" in {m.stage for m in certificate.mechanisms},',
            "test_a_certificate_that_hides_them_does_not_verify[tuned]",
        ),
        (
            "Verification believes a certificate that claims a fine-tuning which was not paid for",
            '"finetune": certificate.fine_tuned,',
            '"finetune": "finetune" in {m.stage for m in certificate.mechanisms},',
            "test_a_certificate_that_hides_them_does_not_verify[alone]",
        ),
    )
    + _of(
        "release/store_checks.py",
        "test_feature_means.py",
        (
            "Verification does not look for a fine-tuning in the plan",
            'in (*BEFORE_FINETUNE, "finetune")',
            "in BEFORE_FINETUNE",
            "test_a_certificate_that_hides_them_does_not_verify[tuned]",
        ),
    )
    + _of(
        "stages/feature_means.py",
        "test_feature_means.py",
        (
            "Feature means with reproducible noise say that they are private",
            "guarantee=guarantee_of(random.guarantee, *(query.is_guaranteed for query in before))",
            'guarantee="differential privacy"',
            "test_reproducible_noise_leaves_no_guarantee",
        ),
    )
    + _of(
        "stages/feature_means.py",
        "privacy/test_feature_means_neighbours.py",
        (
            "Classes are divided by their exact sizes",
            "means, sizes = class_means_of(sums, mechanism.num_images)",
            "means, sizes = class_means_of(sums, mechanism.num_images)\n    sizes = np.bincount(private_labels) + vectors[:, 0].sum()",
            "test_no_image_moves_the_sums_by_more_than_is_accounted_nor_anything_but_the_sums",
        ),
    )
    + _of(
        "semantics/space.py",
        "privacy/test_feature_means_neighbours.py",
        (
            "Vectors are centred by the images that are summed",
            "found = (features.astype(np.float32) - self.mean) @ self.directions",
            "found = (features.astype(np.float32) - features.mean(0)) @ self.directions",
            "test_no_image_moves_the_sums_by_more_than_is_accounted_nor_anything_but_the_sums",
        ),
    )
)

_RELEASE = _of(
    "release/certify.py",
    "test_runner.py",
    (
        "The certificate ignores what the stages say of their randomness",
        "set(guarantees) == {GUARANTEE} and not without_guarantee(entries, events)",
        "True",
        "test_noise_that_can_be_made_again_voids_the_guarantee",
    ),
) + _of(
    "release/verify.py",
    "test_release.py",
    (
        "Verification does not compare epsilon",
        "whole and same and found <= certificate.epsilon * (1 + 1e-9)",
        "whole and same",
        "test_a_smaller_epsilon_than_the_mechanisms_cost_fails",
    ),
    (
        "Verification believes the epsilon that the certificate computed",
        "whole and same and found <= certificate.epsilon * (1 + 1e-9)",
        "whole and found <= certificate.epsilon * (1 + 1e-9)",
        "test_a_computed_epsilon_that_is_not_the_mechanisms_fails",
    ),
    (
        "Verification believes the second accountant's interval",
        "same and interval.holds(found, _SAME_BOUND)",
        "interval.holds(found, _SAME_BOUND)",
        "test_an_interval_that_the_second_accountant_does_not_find_fails[0.99-lower]",
    ),
    (
        "Verification believes what the certificate says of a mechanism",
        "alone and mechanism.in_words == event_in_words(event)",
        "bool(alone) or True",
        "test_a_forged_statement_fails_though_all_sums_fit[other-words]",
    ),
)

_REPORTS = (
    _of(
        "reports/report.py",
        "release/test_report.py",
        (
            "A released report's sections are not looked at",
            "check_releasable([*data.headline, *sections], data.paid)",
            "check_releasable(data.headline, data.paid)",
            "test_a_release_refuses_an_internal_section_by_its_title",
        ),
        (
            "A released report's headline is not looked at",
            "check_releasable([*data.headline, *sections], data.paid)",
            "check_releasable(sections, data.paid)",
            "test_a_release_refuses_internal_figures_wherever_they_stand",
        ),
    )
    + _of(
        "reports/blocks.py",
        "release/test_report.py",
        (
            "Figures of a section that calls itself public are not looked at",
            "        yield from _figures(self.blocks)\n",
            "",
            "test_a_release_refuses_internal_figures_wherever_they_stand",
        ),
        (
            "Figures in cards are not looked at",
            "                yield from _figures(card.blocks)\n",
            "                pass\n",
            "test_a_release_refuses_internal_figures_wherever_they_stand",
        ),
        (
            "A section's own kind is not looked at",
            "        yield self\n",
            "",
            "test_a_release_refuses_an_internal_section_by_its_title",
        ),
        (
            "A charged section need not name what paid",
            '        check_kind("section", self)\n',
            "        pass\n",
            "test_charged_sections_and_only_they_name_what_paid",
        ),
    )
    + _of(
        "reports/contents.py",
        "release/test_report.py",
        (
            "Real images beside synthetic ones are called public",
            'title="Real images beside synthetic ones",\n        kind="internal"',
            'title="Real images beside synthetic ones",\n        kind="public"',
            "test_a_release_refuses_an_internal_section_by_its_title",
        ),
        (
            "Training images beside their near-copies are called public",
            'title="Nearest pairs",\n        kind="internal"',
            'title="Nearest pairs",\n        kind="public"',
            "test_a_release_refuses_an_internal_section_by_its_title",
        ),
        (
            "The confusion matrix is called public",
            'title=title,\n        kind="internal"',
            'title=title,\n        kind="public"',
            "test_a_release_refuses_an_internal_section_by_its_title",
        ),
    )
    + _of(
        "reports/figures.py",
        "release/test_figures.py",
        (
            "Internal figures may leave",
            "    if internal:\n",
            "    if False:\n",
            "test_an_internal_figure_may_not_and_its_value_is_not_told",
        ),
        (
            "Charged figures may leave that another release paid for",
            "    if unpaid:\n",
            "    if False:\n",
            "test_a_charged_figure_that_this_release_did_not_pay_for_may_not",
        ),
    )
    + _of(
        "stages/evaluate.py",
        "release/test_figures.py",
        (
            "Figures that compare with sensitive images are called public",
            'return "public" if measure_name in OF_SYNTHETIC_ALONE else "internal"',
            'return "public"',
            "test_every_figure_of_the_evaluation_is_internal_and_none_is_outside_of_the_private_side",
        ),
    )
    + _of(
        "stages/release.py",
        "test_release.py",
        (
            "A release tells how long a private stage took",
            "seconds=None if artifact.manifest.reservations else float",
            "seconds=float",
            "test_the_report_tells_no_private_stage_s_time",
        ),
    )
)

_VALIDATION = (
    _of(
        "privacy/mechanisms.py",
        "evaluation/test_validation.py",
        (
            "The sensitivity of several classifiers' counts is taken for that of one",
            "return self.votes_each * math.sqrt(self.num_candidates)",
            "return 1.0 * self.votes_each",
            "test_zeroing_out_any_image_moves_the_counts_by_at_most_the_sensitivity_which_is_reached",
        ),
        (
            "Trainings from several seeds are taken for one",
            "return self.votes_each * math.sqrt(self.num_candidates)",
            "return math.sqrt(self.num_candidates)",
            "test_zeroing_out_any_image_moves_the_counts_by_at_most_the_sensitivity_which_is_reached",
        ),
        (
            "The validation's noise is half of what is accounted",
            'Standard deviation of the noise on each count, in images times trainings."""\n'
            "        return self.noise_multiplier * self.sensitivity",
            'Standard deviation of the noise on each count, in images times trainings."""\n'
            "        return 0.5 * self.noise_multiplier * self.sensitivity",
            "test_what_is_accounted_is_the_noise_that_is_added_for_every_attempt_that_may_run",
        ),
        (
            "An interrupted attempt of the validation is not accounted for",
            "dpa.SelfComposedDpEvent(dpa.GaussianDpEvent(self.noise_multiplier), 1 + self.restart_allowance)",
            "dpa.SelfComposedDpEvent(dpa.GaussianDpEvent(self.noise_multiplier), 1)",
            "test_what_is_accounted_is_the_noise_that_is_added_for_every_attempt_that_may_run",
        ),
    )
    + _of(
        "evaluation/validation.py",
        "evaluation/test_validation.py",
        (
            "More classifiers are validated than were accounted for",
            "if len(hits) != mechanism.num_candidates or any",
            "if any",
            "test_what_was_not_accounted_for_is_refused",
        ),
        (
            "More trainings are counted than were accounted for",
            "each.shape != expected or each.dtype != bool",
            "each.dtype != bool",
            "test_what_was_not_accounted_for_is_refused",
        ),
        (
            "An image may count more than once in a training",
            "each.shape != expected or each.dtype != bool",
            "each.shape != expected",
            "test_what_was_not_accounted_for_is_refused",
        ),
    )
    + _of(
        "pipeline/preflight.py",
        "test_validation.py",
        (
            "The validation's noise follows from the number of all training images",
            "noise_multiplier=error * sensitive.num_validation",
            "noise_multiplier=error * sensitive.num_train",
            "test_the_noise_is_what_the_settings_say_for_the_public_number_of_images",
        ),
        (
            "Delta is not held against validation images",
            "        touched, which = touched + sensitive.num_validation,",
            "        touched, which = touched,",
            "test_delta_is_held_against_all_images_that_are_looked_at",
        ),
    )
    + _of(
        "pipeline/plans.py",
        "test_validation.py",
        (
            "Fine-tuning's noise leaves no room for the validation",
            "_calibrated(config, facts, list(ahead.values()), _set_aside(config, facts), joined=True)",
            "_calibrated(config, facts, list(ahead.values()), [], joined=True)",
            "test_before_a_vote_can_be_seen_all_three_are_fixed_and_cost_epsilon_together",
        ),
        (
            "The validation is not fixed with the query",
            "intends=(*ahead.values(), *tuned, *_set_aside(config, facts)),",
            "intends=(*ahead.values(), *tuned),",
            "test_before_a_vote_can_be_seen_all_three_are_fixed_and_cost_epsilon_together",
        ),
        (
            "A validation that was asked for after the votes is not paid in fine-tuning's own plan",
            "delta, jointly = delta_of_course(delta / 2, 0), [*later]",
            "delta, jointly = delta_of_course(delta / 2, 0), []",
            "test_a_private_choice_that_is_asked_for_after_the_votes_were_seen_is_paid_in_a_plan_of_its_own",
        ),
        (
            "A validation that was asked for after the votes is accounted as if it had been fixed before",
            " and others == later",
            "",
            "test_a_private_choice_that_is_asked_for_after_the_votes_were_seen_is_paid_in_a_plan_of_its_own",
        ),
        (
            "Other classifiers are validated again in a plan that was charged for one choice",
            'entry.body["stage"] == "validate" and entry.body["key"] != key',
            "False",
            "test_other_classifiers_are_not_validated_again_in_the_same_plan_and_nothing_is_charged",
        ),
    )
    + _of(
        "pipeline/table.py",
        "test_validation.py",
        (
            "The validation looks at images without a charge",
            "        charge=charges.charge_validate,\n",
            "",
            "test_after_one_interruption_the_same_command_goes_on",
        ),
    )
    + _of(
        "pipeline/key_fields.py",
        "test_validation.py",
        (
            "What is set aside for validation is no part of fine-tuning's key",
            'it makes the noise larger.\n        "validation_error": privacy.validation_error,\n',
            "it makes the noise larger.\n",
            "test_what_is_set_aside_makes_another_fine_tuning",
        ),
    )
    + _of(
        "stages/validate.py",
        "test_validation.py",
        (
            "Exact accuracies are released",
            "noisy_accuracies=accuracies,",
            "noisy_accuracies={name: float(each.mean()) for name, each in hits.items()},",
            "test_the_noise_is_what_the_settings_say_for_the_public_number_of_images",
        ),
        (
            "The choice looks at synthetic images only",
            "chosen = max(accuracies, key=lambda name: accuracies[name])",
            "chosen = downstream.chosen",
            "test_what_is_better_on_sensitive_images_is_chosen_though_synthetic_ones_say_otherwise",
        ),
        (
            "A validation with reproducible noise says that it is private",
            "guarantee=guarantee_of(random.guarantee)",
            'guarantee="differential privacy"',
            "test_noise_that_can_be_made_again_voids_the_guarantee_of_the_release",
        ),
    )
    + _of(
        "release/verify.py",
        "test_validation.py",
        (
            "Verification believes a certificate that leaves the validation out",
            '"validate": certificate.num_validation_images is not None,',
            '"validate": "validate" in {m.stage for m in certificate.mechanisms},',
            "test_a_certificate_that_hides_the_validation_does_not_verify[left out-epsilon]",
        ),
    )
)

_STRATEGIES = (
    _of(
        "pipeline/table.py",
        "test_strategies.py",
        (
            "A run that asks for no votes has a query all the same",
            "        part_of=lambda config: config.selection.asks_the_query,\n",
            "",
            "test_a_random_selection_cannot_see_votes_and_is_the_same_beside_them",
        ),
        (
            "A random selection is given the votes",
            'reads=lambda config: (*_released(config), "index") if _released(config) else ("admit", "index"),',
            'reads=lambda config: ("admit", "query", "index"),',
            "test_by_default_the_query_selects",
        ),
    )
    + _of(
        "pipeline/charges.py",
        "test_strategies.py",
        (
            "Fine-tuning starts from any generator, whatever that was made from",
            '    check_lineage(inputs.get("warmup") or inputs["pretrain"], ahead)\n',
            "",
            "test_a_generator_that_goes_back_to_a_query_is_not_fine_tuned_as_if_there_had_been_none",
        ),
        (
            "Any query passes for the one that is accounted for",
            "artifact.ref not in known:",
            "artifact.ref.stage not in other:",
            "test_nor_as_if_there_had_been_another",
        ),
        (
            "Only what the generator was made from directly is looked at",
            "        to_look_at += [open_ref(artifact.store, ref) for ref in artifact.manifest.inputs.values() if not ref.sealed]\n",
            "",
            "test_a_generator_that_goes_back_to_a_query_is_not_fine_tuned_as_if_there_had_been_none",
        ),
    )
    + _of(
        "release/certify.py",
        "test_strategies.py",
        (
            "A certificate leaves out the query that fine-tuning was charged with",
            "    if hidden := _hidden(plan, held, events):\n",
            "    if hidden := None:\n",
            "test_no_certificate_leaves_a_query_out_that_fine_tuning_was_charged_with",
        ),
    )
    + _of(
        "release/verify.py",
        "test_strategies.py",
        (
            "Verification asks no certificate for a query",
            '"query": selection.asks_the_query,',
            '"query": "query" in {m.stage for m in certificate.mechanisms},',
            "test_a_certificate_that_hides_the_query_does_not_verify",
        ),
    )
    + _of(
        "benchmarks/harness/running.py",
        "benchmark/test_suites.py",
        (
            "A benchmark grants a budget for images that nobody called public",
            "if ledger.grant_entry is None and not suite.public_stand_ins:",
            "if False:",
            "test_a_suite_that_is_not_of_public_sets_grants_nothing",
        ),
        (
            "A benchmark hands out figures of images that nobody called public",
            "    if not suite.public_stand_ins:\n",
            "    if False:\n",
            "test_without_the_declaration_the_table_is_internal_and_is_not_handed_out",
        ),
        (
            "A benchmark's table lies outside of the private side",
            'return f"private/benchmarks/',
            'return f"benchmarks/',
            "test_no_figure_lies_outside_of_the_private_side",
        ),
        (
            "A benchmark starts though its grant does not hold all of its runs",
            "spent + taken(grant)) > 1 + 1e-9:",
            "spent + taken(grant)) > 1e9:",
            "test_a_budget_that_cannot_hold_all_runs_is_refused_before_anything_is_granted",
        ),
    )
)

_AUDIT = (
    _of(
        "privacy/audit.py",
        "privacy/test_audit.py",
        (
            "An audit raises no alarm",
            "for bound in self.bounds if bound.epsilon > self.claimed",
            "for bound in self.bounds if bound.epsilon > 1e9 + self.claimed",
            "test_only_a_bound_above_the_claim_is_an_alarm",
        ),
        (
            "Bounds are held against a larger claim than the audited mechanism's",
            "claimed=epsilon_of([mechanism.event], delta)",
            "claimed=epsilon_of([mechanism.event] * 99, delta)",
            "test_less_noise_is_an_alarm",
        ),
        (
            "The audit takes the claimed noise for the measured one",
            "fitted = max(noise / signal, _LEAST_NOISE)",
            "fitted = mechanism.noise_multiplier",
            "test_less_noise_is_an_alarm",
        ),
        (
            "Right guesses are counted for both coins",
            "+ (~scores.inserted[order[:half]]).sum()",
            "+ half",
            "test_scores_that_say_nothing_show_nothing",
        ),
        (
            "The number of canaries does not count in the one-run bound",
            "2 * num * delta * float(",
            "2 * delta * float(",
            "test_the_one_run_p_value_is_that_of_the_paper",
        ),
    )
    + _of(
        "generators/diffusion/canaries.py",
        "generators/test_canaries.py",
        (
            "A canary is too weak to be clipped",
            "STRENGTH = 1e4",
            "STRENGTH = 1e-4",
            "test_a_canary_adds_its_own_coordinate_at_the_clipping_bound_and_one_that_is_not_inserted_adds_nothing",
        ),
        (
            "A canary that is not inserted is trained on",
            "(number >= 0) & (number < self.canaries.num_embeddings)",
            "number >= 0",
            "test_a_canary_adds_its_own_coordinate_at_the_clipping_bound_and_one_that_is_not_inserted_adds_nothing",
        ),
        (
            "Which canaries are inserted is known beforehand",
            "inserted = random.uniform(num) < 0.5",
            "inserted = np.arange(num) % 2 == 0",
            "test_coins_are_fair_and_fresh",
        ),
    )
    + _of(
        "stages/audit.py",
        "stages/test_audit.py",
        (
            "A run goes on to its release though its claim is refuted",
            "    found = audit(scores, audited, config.privacy.delta)\n    check_audit(found)\n",
            "    found = audit(scores, audited, config.privacy.delta)\n",
            "test_an_alarm_ends_the_run_before_anything_is_released",
        ),
        (
            "The command says that all is well though the claim is refuted",
            "    if found.alarms:\n        raise PrivacyRefused(found.verdict)",
            "    if not found.bounds:\n        raise PrivacyRefused(found.verdict)",
            "test_the_command_says_so_in_one_sentence_and_an_exit_code_when_the_claim_is_refuted",
        ),
    )
    + _of(
        "stages/safety.py",
        "stages/test_safety.py",
        (
            "What was computed from training images is called public",
            'kind="internal") for name, value, note in rows]',
            'kind="public") for name, value, note in rows]',
            "test_memorization_is_measured_on_pixels_and_features_and_its_pairs_are_shown_in_the_internal_report",
        ),
    )
)

# What survived the tests until somebody tried: each with a test of its own, and relatives of them.
_SEEN = (
    _of(
        "privacy/entropy.py",
        "privacy/test_resolution.py",
        (
            "Uniform draws have 24 bits, so that noise ends at 5.3 standard deviations",
            "return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52",
            "return ((bits >> np.uint64(40)).astype(np.float64) + 0.5) * 2.0**-24",
            "test_uniform_draws_are_finer_than_two_to_the_minus_50",
        ),
        (
            "Normal draws are made of 32 bits",
            "size = ndtri(below * 2.0**-64)",
            "size = ndtri((np.floor(below * 2.0**-32) + 0.5) * 2.0**-32)",
            "test_no_two_of_two_million_draws_are_equal[normal]",
        ),
        (
            "Normal draws are rounded to float32",
            "size = ndtri(below * 2.0**-64)",
            "size = ndtri(below * 2.0**-64).astype(np.float32).astype(np.float64)",
            "test_no_two_of_two_million_draws_are_equal[normal]",
        ),
    )
    + _of(
        "privacy/events.py",
        "privacy/test_events.py",
        (
            "A plan pays for any sampling rate",
            'if name != "noise_multiplier"',
            'if name not in ("noise_multiplier", "sampling_probability")',
            "test_a_plan_that_was_opened_for_a_small_sampling_rate_pays_for_no_larger_one",
        ),
        (
            "A plan pays for any number of steps",
            'if name != "noise_multiplier"',
            'if name not in ("noise_multiplier", "count")',
            "test_another_rate_count_or_kind_is_another_shape_and_another_noise_is_none",
        ),
        (
            "A plan pays for any cap of the batches",
            'if name != "noise_multiplier"',
            'if name not in ("noise_multiplier", "truncated_batch_size")',
            "test_each_number_of_a_cut_batch_but_its_noise_belongs_to_its_shape",
        ),
    )
    + _of(
        "privacy/mechanisms.py",
        "privacy/test_events.py",
        (
            "Rounds of sums are accounted as one",
            "return single if len(self.dimensions) == 1 else",
            "return single if len(self.dimensions) <= 2 else",
            "test_sums_of_each_number_of_rounds_cost_as_many_gaussians",
        ),
        (
            "The last round of sums is not accounted",
            "dpa.SelfComposedDpEvent(single, len(self.dimensions))",
            "dpa.SelfComposedDpEvent(single, len(self.dimensions) - 1)",
            "test_sums_of_each_number_of_rounds_cost_as_many_gaussians",
        ),
    )
    + _of(
        "generators/training/gradients.py",
        "test_charging.py",
        (
            "A checkpoint that another reservation paid for is gone on from",
            'if about["reservation"] != paid.reservations[-1]:',
            "if False:",
            "test_a_checkpoint_that_another_reservation_paid_for_is_not_gone_on_from",
        ),
        (
            "Checkpoints are saved at the end alone, so that a crash loses more than was accounted",
            "if state.step % config.checkpoint_steps == 0 or done or stopping:",
            "if done or stopping:",
            "test_no_attempt_runs_further_than_its_block_past_a_checkpoint_that_is_noted_in_the_ledger",
        ),
        (
            "Saved checkpoints are not noted in the ledger",
            "                paid.record_step(state.step)\n",
            "",
            "test_no_attempt_runs_further_than_its_block_past_a_checkpoint_that_is_noted_in_the_ledger",
        ),
        (
            "Fine-tuning starts before the checkpoint that was accounted for",
            "if (saved.step if saved else 0) < paid.from_step:",
            "if False:",
            "test_a_checkpoint_that_vanishes_after_it_was_accounted_for_is_missed",
        ),
    )
    + _of(
        "running/charging.py",
        "test_charging.py",
        (
            "An attempt that goes on may start from anywhere",
            "from_step = ledger.recorded_step(live) - repeated",
            "from_step = 0",
            "test_a_checkpoint_that_vanishes_after_it_was_accounted_for_is_missed",
        ),
        (
            "A reservation pays for another mechanism than it was made for",
            "if live.event != charge.mechanism.event:",
            "if False:",
            "test_a_reservation_pays_for_no_other_mechanism_than_it_was_made_for",
        ),
        (
            "A paid artifact that is gone is made and charged again in silence",
            "        check_not_settled(ledger, stage, key)\n",
            "",
            "test_a_paid_artifact_that_is_gone_is_missed_by_the_charge_itself_too",
        ),
        (
            "The door counts as opened once images were read",
            "        self.opened = True\n"
            '        return read_images(self._sealed_inputs[0].files(f"{split}-"), spill=self._spill)',
            '        found = read_images(self._sealed_inputs[0].files(f"{split}-"), spill=self._spill)\n'
            "        self.opened = True\n"
            "        return found",
            "test_the_door_counts_as_opened_before_the_first_image_is_read",
        ),
    )
    + _of(
        "running/runner.py",
        "test_charging.py",
        (
            "A foreign error of a sealed stage leaks what it says of the images",
            "if not foreign or not (door.opened or stage.sealed):",
            "if not foreign or not door.opened:",
            "test_a_sealed_stage_tells_foreign_errors_in_private_though_it_came_through_no_door",
        ),
    )
    + _of(
        "running/runner.py",
        "test_runner.py",
        (
            "An artifact is reused without a look at what paid for it",
            "        check_paid(existing, ledger)\n",
            "        pass\n",
            "test_an_artifact_that_another_ledger_of_the_store_paid_for_is_not_reused",
        ),
    )
    + _of(
        "store/identity.py",
        "store/test_identity.py",
        (
            "A new key is made where only a ledger is left",
            'return any(sealed) or bool(store.list("ledger"))',
            "return any(sealed)",
            "test_where_only_a_ledger_is_left_no_new_key_is_made",
        ),
        (
            "A new key is made where only a sealed artifact is left",
            'return any(sealed) or bool(store.list("ledger"))',
            'return bool(store.list("ledger"))',
            "test_where_only_a_sealed_artifact_is_left_neither_is",
        ),
    )
    + _of(
        "data/admission.py",
        "data/test_admission_says_nothing.py",
        (
            "A message tells how many images cannot be used",
            "raise SensitiveDataProblem(_UNUSABLE, problems)",
            'raise SensitiveDataProblem(f"{len(problems)}: {_UNUSABLE}", problems)',
            "test_a_message_does_not_tell_how_many_images_cannot_be_used[7]",
        ),
    )
    + _of(
        "privacy/entry.py",
        "privacy/test_entries.py",
        (
            "An entry may hold an infinite number",
            'strict=True, extra="allow", allow_inf_nan=False',
            'strict=True, extra="allow"',
            "test_a_grant_of_a_number_that_json_has_and_arithmetic_has_not_is_refused[epsilon-1e999]",
        ),
    )
    + _of(
        "release/verify.py",
        "release/test_private_side.py",
        (
            "Nobody looks for the private side in a release",
            "if any(sign in data for sign in signs)]",
            "if any(sign in data for sign in ())]",
            "test_so_is_a_certificate_that_does",
        ),
        (
            "An internal report in a release is not noticed",
            'signs = (b"private/artifacts", b"private/checkpoints", INTERNAL.encode())',
            'signs = (b"private/artifacts", b"private/checkpoints")',
            "test_a_file_of_a_release_that_names_the_private_side_is_found",
        ),
    )
    + _of(
        "privacy/budget.py",
        "privacy/test_entries.py",
        (
            "A plan that took the whole grant lets others in once it intends less",
            'Plan.from_json(members[0].body["plan"]).intends) > WHOLE_GRANT',
            'Plan.from_json(members[-1].body["plan"]).intends) > WHOLE_GRANT',
            "test_a_plan_that_took_the_whole_grant_has_it_though_a_later_entry_of_it_intends_less",
        ),
    )
    + _of(
        "generators/training/private_sum.py",
        "generators/test_blocks.py",
        (
            "A block holds the first image of the next one, too",
            "images[block * BLOCK : (block + 1) * BLOCK],\n"
            "                    labels[block * BLOCK : (block + 1) * BLOCK],",
            "images[block * BLOCK : (block + 1) * BLOCK + 1],\n"
            "                    labels[block * BLOCK : (block + 1) * BLOCK + 1],",
            "test_an_image_is_counted_once_in_the_sum_however_blocks_fall",
        ),
    )
)

_DECLARED = (
    _of(
        "privacy/accounting.py",
        "privacy/test_accounting.py",
        (
            "A plan in which an attempt was lost is accounted as if that had been fixed before",
            "if lost == 0 else delta * _LOST_SHARE * 2.0**-lost",
            "if True else delta",
            "test_a_plan_in_which_an_attempt_was_lost_is_accounted_at_the_share_of_its_course",
        ),
    )
    + _of(
        "pipeline/plans.py",
        "test_class_means.py",
        (
            "After a lost attempt fine-tuning's noise is that of a joint bound",
            "prior, later, joined=True, lost=lost)",
            "prior, later, joined=True)",
            "test_a_result_that_was_lost_is_charged_again_within_the_runs_epsilon",
        ),
    )
    + _of(
        "generators/training/private_sum.py",
        "generators/test_finetune.py",
        (
            "Sums are computed in TF32 if somebody switched it on",
            "    @full_float32()\n",
            "",
            "test_sums_are_computed_in_whole_float32_whatever_was_switched_on_outside",
        ),
    )
    + _of(
        "privacy/counts.py",
        "semantics/test_query.py",
        (
            "Noise that is small against the lattice is added all the same",
            "if math.sqrt(points.size) > _FINENESS",
            "if math.sqrt(points.size) < 0 * _FINENESS",
            "test_noise_that_is_too_small_for_the_lattice_is_refused",
        ),
    )
    + _of(
        "data/admission.py",
        "data/test_admission.py",
        (
            "Whether an image is in two sets is told to whoever runs the admission",
            "        identity = spool.identity()\n    write_digests",
            "        identity = spool.identity()\n    if findings:\n"
            "        raise SensitiveDataProblem(_UNUSABLE, findings)\n    write_digests",
            "test_an_image_in_both_sources_is_the_stewards_to_know_and_changes_nothing_else",
        ),
        (
            "Copies of training images are tested on",
            'if split == "test" and source.digests[row] in seen:',
            'if split == "test" and source.digests[row] in seen and held_out is not None:',
            "test_copies_of_a_training_image_are_not_among_the_test_images",
        ),
        (
            "The public number of test images tells how many are copies",
            'num_test=len(held_out.labels) if test else sizes["test"],',
            'num_test=len(held_out.labels) - len(findings) if test else sizes["test"],',
            "test_an_image_in_both_sources_is_the_stewards_to_know_and_changes_nothing_else",
        ),
        (
            "A test image has no mark, and may be published as a public one",
            "mark([*spool.digests, *held_out.digests], key_for(MARKS))",
            "mark(spool.digests, key_for(MARKS))",
            "test_every_sensitive_image_has_a_mark_that_tells_nothing_without_the_key",
        ),
    )
    + _of(
        "data/marks.py",
        "data/test_admission.py",
        (
            "Marks of single images are plain digests",
            "hmac.digest(key, digest, hashlib.sha256)",
            "hashlib.sha256(digest).digest()",
            "test_every_sensitive_image_has_a_mark_that_tells_nothing_without_the_key",
        ),
    )
    + _of(
        "running/declared.py",
        "test_declared.py",
        (
            "Runs of another form of admission than was granted are let in",
            "if fixed != form_of(config):",
            "if False:",
            "test_a_run_of_another_form_of_admission_than_was_granted_is_refused_by_public_numbers_alone"
            "[sensitive.test_fraction=0.21]",
        ),
        (
            "The test source is no part of what is granted",
            '"test": None if config.test is None else config.test.model_dump(mode="json"),',
            '"test": None,',
            "test_a_run_of_another_form_of_admission_than_was_granted_is_refused_by_public_numbers_alone[test source]",
        ),
        (
            "Whoever runs a public set is told whether it holds a sensitive image",
            "    if not _admitted_sets(store):\n        return\n",
            "    key = key_for(store, MARKS)\n"
            "    seen = {one for admit in _admitted_sets(store) for one in read_digests(admit.local(MARKS_FILE))}\n"
            "    if not seen & set(mark(read_digests(folder / DIGESTS_FILE), key)):\n        return\n",
            "test_whether_one_public_image_is_sensitive_is_told_to_the_steward_only",
        ),
        (
            "The sensitive set is taken for a public one",
            "    if not _admitted_sets(store):\n        return\n",
            "    return\n",
            "test_the_sensitive_set_itself_does_not_become_a_public_artifact",
        ),
        (
            "Anybody admits a guess of the granted set, and sees whether its name is the same",
            '    names = store.list("ledger")\n    if any(name.endswith("/admission.json")',
            '    names: list[str] = []\n    if any(name.endswith("/admission.json")',
            "test_who_knows_all_images_but_one_cannot_try_out_guesses_of_that_one[True]",
        ),
        (
            "The steward is not told of sensitive images among public ones",
            "if one in private_marks]",
            "if one is None]",
            "test_whether_one_public_image_is_sensitive_is_told_to_the_steward_only",
        ),
        (
            "A charge takes any public set",
            "not in declared for other in public):",
            "is None for other in public):",
            "test_no_charge_for_a_generator_of_a_public_set_that_was_never_declared",
        ),
    )
    + _of(
        "running/granting.py",
        "test_declared.py",
        (
            "What speaks against a grant is not looked at",
            "    check_findings(admit, partial(write_private, run.store))\n",
            "",
            "test_a_test_source_with_a_training_image_is_refused_at_the_grant_and_which_is_private",
        ),
    )
    + _of(
        "running/rollback.py",
        "test_rollback.py",
        (
            "A ledger that lacks what artifacts name is believed",
            "        if missing:\n",
            "        if False:\n",
            "test_what_artifacts_name_is_missed_before_anything_was_released",
        ),
        (
            "A ledger that lacks what certificates name is believed",
            "if digests[: len(certified)] != certified:",
            "if False:",
            "test_without_its_last_entry_the_ledger_differs_from_the_certificate",
        ),
    )
    + _of(
        "privacy/chain.py",
        "test_rollback.py",
        (
            "Heads are not kept in the second place",
            "                self._witness.note(entry)\n",
            "",
            "test_heads_in_a_second_place_show_a_cut_that_left_no_other_trace",
        ),
        (
            "Heads in the second place are not looked at",
            "            self._witness.check(self._entries)\n",
            "",
            "test_a_witness_that_begins_later_checks_from_there_and_an_edit_is_found",
        ),
    )
    + _of(
        "running/charging.py",
        "test_charging.py",
        (
            "A private artifact is reused though the ledger never paid for it",
            'unpaid = [entry for entry in ids if held.get(entry) not in ("open", "settled")]',
            "unpaid = []",
            "test_an_artifact_that_this_ledger_never_paid_for_is_not_reused",
        ),
    )
    + _of(
        "running/charging.py",
        "test_release.py",
        (
            "The ledger does not record that noise can be made again",
            "            guarantee=random.guarantee,\n        )\n        attempt = 1\n",
            "        )\n        attempt = 1\n",
            "test_noise_that_somebody_can_make_again_is_not_certified_by_an_edited_word",
        ),
    )
    + _of(
        "release/signature.py",
        "test_release.py",
        (
            "A signature of another certificate is accepted",
            "        key.verify(raw, _signed(certificate))\n",
            "        pass\n",
            "test_a_signature_of_another_certificate_or_key_or_none_fails",
        ),
        (
            "A signature by another key is accepted",
            "    if stated != key.public_bytes(Encoding.Raw, PublicFormat.Raw):",
            "    if False:",
            "test_a_signature_of_another_certificate_or_key_or_none_fails",
        ),
    )
)

_ACROSS = [
    *_of(
        "stages/admit.py",
        "test_bad_input.py",
        (
            "The message says what is wrong with which sensitive file",
            'raise DataError(f"{problem} Details, which are private, are in {place}")',
            'raise DataError(f"{problem} {problem.details} are in {place}")',
            "test_a_sensitive_file_that_is_no_usable_image_is_named_in_private_only",
        ),
    ),
    *_of(
        "release/store_checks.py",
        "test_release.py",
        (
            "Verification believes what the certificate says of the grant and of other runs",
            "    if not wrong:\n        spent",
            "    if False:\n        spent",
            "test_a_forged_statement_fails_though_all_sums_fit[another-grant]",
        ),
        (
            "Verification does not compare certificate and ledger",
            "wrong = _differences(certificate, entries, counting)",
            "wrong = []",
            "test_a_forged_statement_fails_though_all_sums_fit",
        ),
        (
            "What the store never published is verified",
            '        wrong.append(f"the store published no such release',
            '        list(f"the store published no such release',
            "test_what_the_store_did_not_publish_is_not_verified_though_every_digest_fits",
        ),
        (
            "What artifacts say of their noise is not looked at",
            "elif (found := guarantee_said(stage, artifact)) != GUARANTEE:",
            'elif (found := "") != "":',
            "test_an_artifact_that_says_that_its_noise_can_be_made_again_does_not_verify",
        ),
        (
            "A certificate may leave out the last entries about its own mechanisms",
            'wrong = [f"entry {number} is about its own mechanisms, and was left out" for number in left_out]',
            "wrong: list[str] = []",
            "test_entries_about_its_own_mechanisms_that_are_left_out_are_missed",
        ),
    ),
    *_of(
        "methods/training.py",
        "test_release.py",
        (
            "The configured cap does not reach the mechanism",
            "            largest_batch_size=settings.largest_batch_size,\n",
            "",
            "test_a_release_with_often_cut_batches_has_no_interval_and_says_why_at_every_place",
        ),
    ),
    *_of(
        "release/store_checks.py",
        "test_class_means.py",
        (
            "Verification does not look for class mean images in fine-tuning's plan",
            'and entry.body["stage"] in (*BEFORE_FINETUNE, "finetune")',
            'and entry.body["stage"] == "query"',
            "test_a_certificate_that_hides_them_does_not_verify",
        ),
    ),
    *_of(
        "stages/query.py",
        "test_runner.py",
        (
            "The exact histogram is stored",
            "noisy_histogram=noisy.tolist()",
            "noisy_histogram=vote_histogram(votes, private_labels, mechanism).tolist()",
            "test_no_cell_of_the_stored_histogram_is_an_exact_count",
        ),
        (
            "A query with reproducible noise says that it is private",
            "guarantee=guarantee_of(random.guarantee)",
            'guarantee="differential privacy"',
            "test_a_query_with_noise_that_can_be_made_again_says_so",
        ),
    ),
    *_of(
        "release/store_checks.py",
        "test_strategies.py",
        (
            "Verification does not look for a query in fine-tuning's plan",
            '        and entry.body["stage"] in (*BEFORE_FINETUNE, "finetune")\n',
            "        and False\n",
            "test_a_certificate_that_hides_the_query_does_not_verify",
        ),
    ),
    *_of(
        "pipeline/stage.py",
        "test_runner.py",
        (
            "A stage that is not sealed may ask for sensitive images without a charge",
            "if self.opens and not self.sealed:",
            "if False:",
            "test_training_images_are_shown_without_a_charge_to_a_sealed_stage_that_asks_for_them_and_to_no_other",
        ),
        (
            "A stage may open images without a charge though its artifact may leave",
            "        if self.opens and not self.sealed:\n",
            "        if False:\n",
            "test_only_a_sealed_stage_opens_training_images_without_a_charge",
        ),
    ),
    *_of(
        "generators/mean_embedding/finetuning.py",
        "stages/test_critic_run.py",
        (
            "Votes whose noise can be made again pass once an embedding was drawn",
            "guarantee_of(released.guarantee, is_guaranteed(context.inputs))",
            "guarantee_of(released.guarantee)",
            "test_votes_with_reproducible_noise_leave_no_guarantee[semantic]",
        ),
        (
            "A second embedding that was released before is drawn again, uncharged",
            "            if len(released.sums) < rounds:\n                _draw(",
            "            if True:\n                del released.sums[1:]\n                _draw(",
            "test_what_was_released_for_a_critic_is_trained_on_with_that_critic[semantic]",
        ),
        (
            "An attempt that may have drawn a second embedding says that it drew none",
            "            not_drawn.pop_all()\n",
            "            pass\n",
            "test_a_second_embedding_that_may_have_been_drawn_is_never_drawn_again[semantic]",
        ),
        (
            "Sums of one critic are read as another's",
            "    if released.critic:\n",
            "    if not released:\n",
            "test_what_was_released_for_a_critic_is_trained_on_with_that_critic[semantic]",
        ),
    ),
    *_of(
        "methods/generator.py",
        "stages/test_mean_embedding_run.py",
        (
            "An embedding that may have been drawn is drawn again under the same charge",
            '        """Steps accounted for beside those that are run, to resume after crashes."""\n        return 0',
            '        """Steps accounted for beside those that are run, to resume after crashes."""\n        return 20',
            "test_an_embedding_that_may_have_been_drawn_and_was_not_saved_is_never_drawn_again",
        ),
    ),
    *_of(
        "generators/mean_embedding/finetuning.py",
        "stages/test_mean_embedding_run.py",
        (
            "An embedding that was released before is drawn again, uncharged",
            "        if not released.sums:\n            _draw(",
            "        if True:\n            released.sums.clear()\n            _draw(",
            "test_an_embedding_that_was_saved_is_trained_on_again_and_is_not_charged_twice",
        ),
        (
            "The embedding is drawn with half the noise that was charged",
            "            mechanism.round(number),\n",
            "            type(mechanism)(**{**asdict(mechanism), 'noise_multiplier': mechanism.noise_multiplier / 2}).round(number),\n",
            "test_an_embedding_that_was_saved_is_trained_on_again_and_is_not_charged_twice",
        ),
        (
            "A saved embedding that was paid for by another reservation is used",
            'if about["reservation"] != paid.reservations[-1]:',
            'if not about["reservation"]:',
            "test_a_saved_embedding_of_another_reservation_is_not_used",
        ),
        (
            "An embedding whose noise can be made again passes once it is resumed",
            'guarantee=about["guarantee"],',
            "guarantee=paid.random.guarantee,",
            "test_reproducible_noise_is_marked_also_after_it_was_resumed",
        ),
    ),
]

MUTANTS: tuple[Mutant, ...] = (
    *_DECLARED,
    *_CLIPPING,
    *_ENGINES,
    *_STEP,
    *_ROUNDING,
    *_RANDOM,
    *_POISSON,
    *_CAP,
    *_RENYI,
    *_MECHANISMS,
    *_ACCOUNTING,
    *_QUERY,
    *_CLASS_SUMS,
    *_CLASS_MEANS,
    *_FEATURE_MEANS,
    *_MEAN_EMBEDDING,
    *_FINETUNE,
    *_SPENDING,
    *_LIFE,
    *_CHAIN,
    *_ENTRIES,
    *_LEDGERS,
    *_CHARGING,
    *_GIVEN_BACK,
    *_CHECKPOINTS,
    *_REHEARSAL,
    *_CHECKED_BEFORE,
    *_RUNNER,
    *_STAGES,
    *_DATA,
    *_FILES,
    *_RELEASE,
    *_REPORTS,
    *_VALIDATION,
    *_STRATEGIES,
    *_AUDIT,
    *_SEEN,
    *_ACROSS,
)
