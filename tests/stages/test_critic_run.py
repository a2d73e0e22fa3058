"""Mean embeddings with a selection: a critic of public images, and one plan that holds query and embedding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from numpy.typing import NDArray

from benchmarks.harness.results import row_of
from benchmarks.harness.suite import Cell
from privimage.data.pixels import from_pixels
from privimage.data.table import read_images
from privimage.errors import BudgetExceeded, ConfigError, PrivacyRefused
from privimage.generators.mean_embedding import embedding, finetuning
from privimage.generators.mean_embedding.choice import choose, share_believed
from privimage.generators.mean_embedding.critic import critic_of, features_of, open_critic, open_examples, train_critic
from privimage.generators.mean_embedding.embedding import draw, open_embedding
from privimage.generators.mean_embedding.features import JointFeatures
from privimage.generators.mean_embedding.matching import EmbeddingGenerator, class_means
from privimage.generators.mean_embedding.mixing import mixtures
from privimage.generators.mean_embedding.rejection import RejectionSampling
from privimage.generators.opening import open_generator
from privimage.generators.sampling.class_sizes import labels_of, shares_by_votes
from privimage.methods.generators.mean_embedding import MeanEmbedding
from privimage.pipeline.table import stage_named
from privimage.privacy.accounting import epsilon_of
from privimage.privacy.entropy import InsecureRandomForTests
from privimage.privacy.events import event_from_json, times
from privimage.privacy.mechanisms import ClassSumRounds, ClassSums
from privimage.running.plan import look_up
from privimage.running.runner import run_all
from privimage.stages import finetune as stage
from privimage.store.artifacts import Artifact, open_ref
from tests.pipeline_fixtures import Answer, Place
from tests.stages.test_mean_embedding_run import SMALL, stop_in

CRITIC = {"critic_features": 40, "critic_channels": 4, "critic_steps": 30, "critic_images": 60}
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["semantic", "random"])
def made(request: pytest.FixtureRequest, granted: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A finished run; do not change."""
    settings = yaml.safe_load(granted.config.read_text())
    settings["generator"] = {"kind": "mean_embedding", **SMALL, **CRITIC, "sampling": {"mixer_steps": 5}}
    settings["selection"] = settings.get("selection", {}) | {"strategy": request.param}
    folder = tmp_path_factory.mktemp(request.param)
    config = folder / "critic.yaml"
    config.write_text(yaml.safe_dump(settings))
    place = Place(config=config, folder=granted.copy_to(folder / "store").folder)
    run_all(place.run())
    return place


def test_query_and_embedding_are_one_plan_that_costs_what_the_run_may(
    made: Place, privimage: Callable[..., Answer]
) -> None:
    asks = made.run().config.selection.asks_the_query
    reserved = [entry for entry in made.entries if entry.kind == "reserve"]
    assert [entry.body["stage"] for entry in reserved] == [*(["query"] if asks else []), "finetune"]
    assert len({entry.body["plan"]["id"] for entry in reserved}) == 1
    intended = [event_from_json(entry.body["event"]) for entry in reserved]
    plan = reserved[-1].body["plan"]
    assert [event_from_json(event) for event in plan["intends"]] == intended
    told = json.loads(made.payload("finetune", "generator.json").read_text())
    assert ClassSumRounds(**told["mechanism"]).event == intended[-1]
    assert told["mechanism"]["dimensions"] == [60 + 40 + 1, 40 + 1]
    epsilon = epsilon_of(intended, plan["delta"])
    assert 0.99 * plan["epsilon"] < epsilon <= plan["epsilon"]
    verified = privimage("verify", made.release, "--store", made.folder, "--config", made.config)
    assert verified.code == 0, verified.out


def test_certificate_and_datasheet_say_how_it_was_made(made: Place) -> None:
    certificate = json.loads((made.release / "certificate.json").read_text())
    selection = made.run().config.selection
    assert (certificate["generator"], certificate["selection"]) == ("mean_embedding", selection.strategy)
    assert ("query" in {mechanism["stage"] for mechanism in certificate["mechanisms"]}) == selection.asks_the_query
    # The query reads the images as well.
    assert "Fine-tuning read all training images for each of its sums" in certificate["assumptions"][-1]
    card = (made.release / "README.md").read_text()
    assert "A classifier learns from the selection" in card and "DP-SGD" not in card


def test_what_the_critic_sees_has_norm_one_and_is_of_one_image_alone(made: Place) -> None:
    run = made.run()
    pretrained = open_ref(run.store, run_all(run, "pretrain")["pretrain"].ref)
    generator, about, first = embedding.opened(run.config, {"pretrain": pretrained})
    config, size = MeanEmbedding(**about.network), {"channels": about.channels, "num_classes": generator.num_classes}
    images, labels = open_examples(pretrained)
    trained = {"seed": config.seed, "device": CPU, "on_step": lambda *told: None}
    critic, _ = train_critic(images, labels, size["num_classes"], config, run.config.classifier, **trained)
    again = critic_of(critic.tensors(), config, **size, device=CPU)
    saved = open_critic(pretrained, config, **size, device=CPU)
    for either in (critic, again, saved):
        assert not either.network.training
        assert not any(parameter.requires_grad for parameter in either.network.parameters())
    x = from_pixels(images[:7])
    seen = features_of(critic, config, CPU, number=1)
    for same in (again, saved):  # the first critic: of public images alone, by public numbers
        assert torch.equal(seen(x), features_of(same, config, CPU, number=1)(x))
    second = features_of(critic, config, CPU, number=2)
    assert not torch.equal(seen.directions, second.directions)
    torch.testing.assert_close(first(x)[:, 60:], seen(x) * 0.5**0.5)
    joint = JointFeatures(parts=(first, second), shares=(0.3, 0.7))
    for features, number in ((seen, 40), (first, 100), (joint, 140)):
        assert features(x).shape == (7, number)
        assert torch.allclose(features(x).square().sum(1), torch.ones(7), atol=1e-5)
        # Beside any others: no statistic of a batch is in them.
        assert torch.allclose(features(x[:1]), features(x)[:1], atol=1e-5)


def test_too_few_selected_images_for_a_critic_are_found_before_fine_tuning_is_charged(place: Place) -> None:
    with pytest.raises(ConfigError, match="a critic needs at least 10: select more"):
        run_all(place.run("selection.max_fraction=0.0001"))
    assert "reserve finetune" not in place.kinds


# ------------------------------------------------------------------ two releases


@pytest.fixture
def place(made: Place, granted: Place, tmp_path: Path) -> Place:
    return Place(config=made.config, folder=granted.copy_to(tmp_path / "store").folder)


class Watch:
    """What was drawn, by which mechanism, of which features, and what was trained on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.drawn: list[tuple[ClassSums, Any]] = []
        self.matched: list[tuple[int, torch.Tensor]] = []
        real_sums, real_match = finetuning.noisy_class_sums, finetuning.match

        def sums(vectors: Any, labels: Any, mechanism: ClassSums, **named: Any) -> Any:
            self.drawn.append((mechanism, real_sums(vectors, labels, mechanism, **named)))
            return self.drawn[-1][1]

        def match(generator: Any, means: Any, features: Any, config: MeanEmbedding, **named: Any) -> Any:
            self.matched.append((config.num_steps, means))
            return real_match(generator, means, features, config, **named)

        patch.setattr(stage, "rehearse", lambda *given: None)
        patch.setattr(finetuning, "noisy_class_sums", sums)
        patch.setattr(finetuning, "match", match)


def test_each_embedding_is_drawn_once_with_the_noise_that_was_charged_and_trained_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    run_all(place.run("generator.num_steps=10"), "finetune")
    (charged,) = (entry for entry in place.entries if entry.body.get("stage") == "finetune")
    single, count = times(event_from_json(charged.body["event"]))
    assert [mechanism.event for mechanism, _ in watch.drawn] == [single] * count == [single] * 2
    assert [mechanism.dimension for mechanism, _ in watch.drawn] == [101, 41]
    tuned = open_ref(place.run().store, run_all(place.run("generator.num_steps=10"), "finetune")["finetune"].ref)
    generator, about = open_generator(tuned, CPU)
    assert isinstance(generator, RejectionSampling) and generator.attempts == 4 and not generator.critic.training
    assert about.rejects
    (first, of_first), (then, of_both) = watch.matched
    assert (first, then) == (6, 4)
    torch.testing.assert_close(of_both[:, :100], of_first * 0.5**0.5)
    assert of_both.shape[1] == 140
    assert place.kinds[-3:] == ["reserve finetune", "pause", "settle"]


def test_an_attempt_that_ends_between_the_two_has_lost_nothing_and_draws_the_second_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    run_all(place.run(), "pretrain")  # trains a critic as well
    for function in ("match", "trained_critic"):
        with monkeypatch.context() as patch:
            stop_in(patch, function)
            with pytest.raises(KeyboardInterrupt):
                run_all(place.run(), "finetune")
        assert len(watch.drawn) == 1
    run_all(place.run(), "finetune")
    assert [mechanism.dimension for mechanism, _ in watch.drawn] == [101, 41]
    assert [kind for kind in place.kinds if kind in ("pause", "resume")] == [
        "pause",
        "resume",
        "pause",
        "resume",
        "pause",
    ]
    assert [entry.body["lost_steps"] for entry in place.entries if entry.kind == "resume"] == [0, 0]


def test_what_was_released_for_a_critic_is_trained_on_with_that_critic(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    run_all(place.run(), "pretrain")
    with monkeypatch.context() as patch:
        stop_in(patch, "joined")
        with pytest.raises(KeyboardInterrupt):
            run_all(place.run(), "finetune")
    assert len(watch.drawn) == 2

    def never(*given: Any, **named: Any) -> Any:
        raise AssertionError("all was saved")

    with monkeypatch.context() as patch:
        for function in ("trained_critic", "noisy_class_sums"):
            patch.setattr(finetuning, function, never)
        run_all(place.run(), "finetune")
    means = class_means(watch.drawn[1][1], watch.drawn[1][0].num_images)
    torch.testing.assert_close(watch.matched[-1][1][:, 100:], means * 0.5**0.5)


def test_a_second_embedding_that_may_have_been_drawn_is_never_drawn_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    real = finetuning.pack

    def pack(tensors: Any, about: Any) -> bytes:
        if "second" in tensors:
            raise KeyboardInterrupt
        return real(tensors, about)

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "pack", pack)
        with pytest.raises(KeyboardInterrupt):
            run_all(place.run(), "finetune")
    assert len(watch.drawn) == 2
    with pytest.raises(BudgetExceeded, match="another draw"):
        run_all(place.run(), "finetune")
    assert len(watch.drawn) == 2


@pytest.mark.parametrize(
    "override",
    [
        "generator.horizontal_flip=true",
        "classifier.learning_rate=0.03",
        "classifier.weight_decay=0.1",
        "classifier.augment=false",
    ],
)
def test_what_the_critic_learns_by_is_in_the_key_of_what_it_is_written_with(made: Place, override: str) -> None:
    fields = stage_named("pretrain").fields
    assert fields(made.run().config) != fields(made.run(override).config)
    without = "selection.strategy=none"
    assert fields(made.run(without).config) == fields(made.run(without, override).config)


@pytest.mark.parametrize("override", ["generator.horizontal_flip=true", "classifier.augment=false"])
def test_what_the_critic_learns_by_reaches_the_key_of_what_is_charged(place: Place, override: str) -> None:
    for overrides in ((), (override,)):
        run_all(place.run(*overrides), "pretrain")
    keys = [look_up(place.run(*overrides), "finetune")[1]["finetune"] for overrides in ((), (override,))]
    assert None not in keys and keys[0] != keys[1]


def test_with_one_attempt_nothing_is_rejected(place: Place) -> None:
    once = place.run("generator.critic_attempts=1")
    generator, about = open_generator(open_ref(once.store, run_all(once, "finetune")["finetune"].ref), CPU)
    assert isinstance(generator, EmbeddingGenerator) and not about.rejects


# ------------------------------------------------------------------ public images among the released ones


@pytest.fixture
def again(made: Place, tmp_path: Path) -> Place:
    """A finished run, to go on with."""
    return Place(config=made.config, folder=made.copy_to(tmp_path / "store").folder)


def released(place: Place) -> NDArray[np.uint8]:
    images, labels = read_images([place.release / "synthetic.parquet"])
    assert np.array_equal(labels, np.arange(len(images)) % (labels.max() + 1))
    return images


def opened(place: Place, stage: str, *overrides: str) -> Artifact:
    run = place.run(*overrides)
    return open_ref(run.store, run_all(run, stage)[stage].ref)


def export_to_folder(place: Place, privimage: Callable[..., Answer]) -> set[str]:
    """Names of the images that an export says are public."""
    to = place.folder.parent / "exported"
    shutil.rmtree(to, ignore_errors=True)
    assert privimage("export", place.release, "--format", "folder", "--to", to).code == 0
    listed = to / "public_images.json"
    return set(json.loads(listed.read_text())) if listed.exists() else set()


def test_public_images_are_released_on_request_alone_for_free_and_it_is_said(
    again: Place, privimage: Callable[..., Answer]
) -> None:
    examples = {image.numpy().tobytes() for image in open_examples(opened(again, "pretrain"))[0]}

    def num_public() -> int:
        return sum(image.tobytes() in examples for image in released(again))

    assert num_public() == 0 and "None of them is a photograph" in (again.release / "README.md").read_text()
    assert "every image is generated" in (again.release / "report.html").read_text()
    assert export_to_folder(again, privimage) == set()
    before, drawn = again.kinds, released(again)
    shutil.rmtree(again.release)
    run_all(again.run("generator.sampling.public_images=unchanged"))
    assert again.kinds == before  # nothing was charged
    found = num_public()
    assert 0 < found < len(released(again)) == len(drawn) == 40
    assert (
        found
        == opened(again, "synthesize", "generator.sampling.public_images=unchanged").read_json("synthesis.json")[
            "num_public"
        ]
    )
    run = again.run("generator.sampling.public_images=unchanged")
    cell = Cell(dataset="", method="", trained_as="", epsilon=1, seed=0, config=run.config, draws={})
    assert row_of(cell, run).public_share == found / 40
    table = pq.read_table(again.release / "synthetic.parquet")["image"].to_pylist()
    marked = [row["path"] == "public" for row in table]
    assert marked == [image.tobytes() in examples for image in released(again)]
    card = (again.release / "README.md").read_text()
    assert f"of which {found} are images of the public set, unchanged" in card and "None of them is" not in card
    assert "public ones that were selected for it, those" in card and "may be drawn again" not in card
    assert "It does not hold for the public images" in card
    report = (again.release / "report.html").read_text()
    assert f"{found:,} of all images are public ones, unchanged" in report and "every image is generated" not in report
    assert export_to_folder(again, privimage) == {f"{row:06d}" for row, public in enumerate(marked) if public}
    verified = privimage("verify", again.release, "--store", again.folder)
    assert verified.code == 0, verified.out


def test_mixtures_of_public_images_are_among_the_released_ones_by_default_and_none_is_a_public_image(
    made: Place,
) -> None:
    mixed = json.loads(made.payload("synthesize", "synthesis.json").read_text())["num_mixed"]
    card, report = ((made.release / name).read_text() for name in ("README.md", "report.html"))
    assert f"{mixed:,} of them are mixtures" in card and "None of them is a photograph" in card
    assert "Mixtures of two public images" in report and "every image is generated" in report
    images, _ = open_examples(opened(made, "pretrain"))
    assert {image.tobytes() for image in released(made)}.isdisjoint(image.numpy().tobytes() for image in images)


def test_drawn_images_are_rejected_where_the_critic_sees_too_few_as_they_were_meant_and_the_datasheet_says_whether(
    again: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decided once for all parts, on either side of the share that the critic believes."""
    believed, asked = [], []

    def believe(*arguments: Any) -> float:
        believed.append(share_believed(*arguments))
        return believed[-1]

    def choosing(*arguments: Any, reject_drawn: bool) -> Any:
        asked.append(reject_drawn)
        return choose(*arguments, reject_drawn=reject_drawn)

    monkeypatch.setattr("privimage.generators.mean_embedding.choice._TOGETHER", 3)
    monkeypatch.setattr("privimage.generators.mean_embedding.choice.share_believed", believe)
    monkeypatch.setattr("privimage.generators.mean_embedding.choice.choose", choosing)
    before, told = again.kinds, "Of images that were drawn for a class, and of "
    for below, said in ((1.0, "mixtures"), (0.0, "those in which")):
        shutil.rmtree(again.release)
        run_all(again.run(f"generator.sampling.reject_below={below}"))
        assert f"{told}{said}" in " ".join((again.release / "README.md").read_text().split())
        assert len(believed) == 1 and 0 < believed.pop() < 1
        assert len(asked) > 1 and set(asked) == {below == 1}
        asked.clear()
    assert again.kinds == before  # nothing was charged


def test_all_are_drawn_and_rejected_where_nothing_is_to_come_of_public_images(again: Place) -> None:
    shutil.rmtree(again.release)
    run_all(again.run("generator.sampling.public_images=none"))
    card = (again.release / "README.md").read_text()
    assert "may be drawn again" in card and "mixtures" not in card


def number_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write into every drawn and mixed image what it was made of: of a few public ones, two mixtures may come out the same."""

    def numbered(images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        rows = images.flatten(1).clone()
        rows[:, : numbers.shape[1]] = numbers
        return rows.view_as(images)

    def drawing(
        generator: EmbeddingGenerator, about: Any, seeds: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        images, classes = draw(generator, about, seeds, labels)
        return numbered(images, torch.stack([seeds % 250, seeds // 250 % 250, seeds * 0], dim=1)), classes

    def mixing(*arguments: Any, seed: int) -> tuple[torch.Tensor, ...]:
        images, classes = mixtures(*arguments, seed=seed)
        rows = torch.arange(len(images))
        return numbered(images, torch.stack([rows % 250, rows // 250, rows * 0 + seed % 250 + 1], dim=1)), classes

    monkeypatch.setattr("privimage.generators.mean_embedding.choice.draw", drawing)
    monkeypatch.setattr("privimage.generators.mean_embedding.choice.mixtures", mixing)


@pytest.mark.parametrize("kind", ["mixed", "unchanged"])
def test_of_many_some_are_chosen_after_others_and_nothing_twice(
    again: Place, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("privimage.generators.mean_embedding.choice._TOGETHER", 3)
    number_candidates(monkeypatch)
    made = opened(
        again, "synthesize", f"generator.sampling.public_images={kind}", "synthesize.num_images=39", "synthesize.seed=1"
    )
    images, labels = read_images(made.files("images-"))
    names = made.read_json("synthesis.json")["class_names"]
    assert labels.tolist() == [row % len(names) for row in range(39)]
    assert len({image.tobytes() for image in images}) == 39


def test_images_are_chosen_for_classes_of_sizes_by_the_votes_and_the_datasheet_says_so(
    again: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not again.run().config.selection.asks_the_query:
        pytest.skip("without a query nothing tells the sizes")
    monkeypatch.setattr("privimage.generators.mean_embedding.choice._TOGETHER", 60)
    number_candidates(monkeypatch)
    before, sized = again.kinds, ("synthesize.class_sizes=query", "synthesize.num_images=300")
    shutil.rmtree(again.release)
    run_all(again.run(*sized))
    query = opened(again, "query").read_json("query.json")
    expected = labels_of(torch.arange(300), 3, shares_by_votes(query["noisy_histogram"], query["num_votes"]))
    images, labels = read_images([again.release / "synthetic.parquet"])
    assert labels.tolist() == expected.tolist() and len({image.tobytes() for image in images}) == 300
    assert "sizes are in proportion to noisy votes" in (again.release / "README.md").read_text()
    assert again.kinds == before


def test_the_embedding_that_images_are_chosen_by_is_the_one_that_was_trained_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(monkeypatch)
    tuned = opened(place, "finetune")
    found = open_embedding(place.run().config, opened(place, "pretrain"), tuned)
    assert torch.equal(found.means, watch.matched[-1][1])
    generator, _ = open_generator(tuned, CPU)
    assert isinstance(generator, RejectionSampling)
    critic, network = generator.critic.state_dict(), found.critic.network.state_dict()
    assert all(torch.equal(critic[name], network[name]) for name in critic) and not found.critic.network.training
    assert found.features.size == found.means.shape[1] == 140


def test_what_images_are_chosen_from_is_in_the_key_of_synthesis_and_in_none_that_is_charged(made: Place) -> None:
    def of(stage: str, *overrides: str) -> dict[str, Any]:
        return stage_named(stage).fields(made.run(*overrides).config)

    kinds = {
        kind: of("synthesize", f"generator.sampling.public_images={kind}") for kind in ("none", "mixed", "unchanged")
    }
    assert kinds["none"]["generator"] == {"kind": "mean_embedding"}
    assert [kinds[kind]["generator"]["sampling"]["public_images"] for kind in ("mixed", "unchanged")] == [
        "mixed",
        "unchanged",
    ]
    unchanged, fewer = "generator.sampling.public_images=unchanged", "generator.sampling.mixer_steps=7"
    assert of("synthesize", "generator.sampling.public_images=mixed", fewer) != kinds["mixed"]
    assert of("synthesize", unchanged, fewer) == kinds["unchanged"]
    below = {
        kind: of("synthesize", f"generator.sampling.public_images={kind}", "generator.sampling.reject_below=1")
        for kind in kinds
    }
    assert [below[kind] == kinds[kind] for kind in kinds] == [True, False, False]
    assert of("finetune", "generator.sampling.reject_below=1") == of("finetune")
    assert of("finetune", "generator.sampling.public_images=unchanged") == of(
        "finetune", "generator.sampling.public_images=none"
    )


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (("generator.kind=diffusion", "generator.sampling.public_images=mixed"), "public_images: this key is unknown"),
        (("selection.strategy=none", "generator.sampling.public_images=mixed"), "there are none to choose from"),
    ],
)
def test_public_images_where_nothing_chooses_from_them_are_refused(
    made: Place, overrides: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        made.run(*overrides)


def test_sums_of_another_size_than_is_charged_are_refused_before_the_charge(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        monkeypatch.context() as patch,
        pytest.raises(ConfigError, match=r"Sums of \(101, 42\) numbers would be charged"),
    ):
        patch.setattr(MeanEmbedding, "dimensions", lambda self, with_critic: (101, 42))
        run_all(place.run(), "finetune")
    assert "reserve finetune" not in place.kinds


def test_votes_with_reproducible_noise_leave_no_guarantee(made: Place, granted: Place, tmp_path: Path) -> None:
    if not made.run().config.selection.asks_the_query:
        pytest.skip("there are no votes")
    place = Place(config=made.config, folder=granted.copy_to(tmp_path / "store").folder)
    run_all(place.run(insecure=InsecureRandomForTests(0)), "query")
    result = run_all(place.run(), "finetune")["finetune"]
    assert open_ref(place.store, result.ref).read_json("generator.json")["guarantee"] == "none"


@pytest.mark.parametrize(("first", "then"), [("mean_embedding", "diffusion"), ("diffusion", "mean_embedding")])
def test_a_query_that_was_interrupted_is_not_repeated_for_another_kind_of_generator(
    first: str, then: str, granted_copy: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plan was opened for one: the other would be refused once the query was paid for again."""

    def killed(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("privimage.stages.query.add_noise", killed)
        run_all(granted_copy.run(f"generator.kind={first}"), "query")
    assert granted_copy.kinds == ["grant", "reserve query"]
    with pytest.raises(PrivacyRefused, match="--draw query=2"):
        run_all(granted_copy.run(f"generator.kind={then}"), "query")
    assert granted_copy.kinds == ["grant", "reserve query"]
    run_all(granted_copy.run(f"generator.kind={then}", draws={"query": 2}), "query")
    run_all(granted_copy.run(f"generator.kind={first}"), "query")
