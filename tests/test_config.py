"""Configuration: everything wrong is refused before anything happens, and named with its place."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from privimage.config.loading import load_config, parse_config
from privimage.config.run import RunConfig
from privimage.errors import ConfigError
from privimage.methods.registry import GENERATORS, SELECTIONS
from tests.pipeline_fixtures import SETTINGS

DATASETS = Path(__file__).parent.parent / "deployments" / "datasets"


def sections(model: type[BaseModel]) -> set[type[BaseModel]]:
    """A section and all that it may hold."""
    found = {model}
    for field in model.model_fields.values():
        for each in (field.annotation, *get_args(field.annotation)):
            if isinstance(each, type) and issubclass(each, BaseModel):
                found |= sections(each)
    return found


METHODS = [registry.named(name) for registry in (GENERATORS, SELECTIONS) for name in registry.names]
SECTIONS = sorted(sections(RunConfig).union(*map(sections, METHODS)), key=lambda section: section.__name__)


def changed(place: str, value: Any) -> dict[str, Any]:
    """The tiny run's settings with one of them set."""
    settings = deepcopy(SETTINGS)
    *parents, last = place.split(".")
    target = settings
    for parent in parents:
        target = target.setdefault(parent, {})
    target[last] = value
    return settings


@pytest.mark.parametrize(
    "place",
    [
        "surprise",
        "image.surprise",
        "sensitive.surprise",
        "sensitive.train.surprise",
        "public.surprise",
        "public.source.surprise",
        "privacy.surprise",
        "classifier.surprise",
        "selection.surprise",
        "generator.surprise",
        "generator.network.surprise",
        "generator.pretrain.surprise",
        "generator.finetune.surprise",
        "generator.sampling.surprise",
        "synthesize.surprise",
        "evaluate.surprise",
        "performance.surprise",
    ],
)
def test_an_unknown_key_is_refused_and_named_wherever_it_is(place: str) -> None:
    with pytest.raises(ConfigError, match="surprise") as caught:
        parse_config(changed(place, 1))
    assert place.split(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("sensitiv", "sensitive"),
        ("synthesize.num_image", "num_images"),
        ("generator.network.base_chanels", "base_channels"),
        ("selection.category_per_class", "categories_per_class"),
        ("finetune", "generator.finetune"),
        ("max_fraction", "selection.max_fraction"),
    ],
)
def test_a_key_that_is_nearly_right_is_answered_with_the_right_one(wrong: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"{wrong}: this key is unknown, did you mean {meant}\?"):
        parse_config(changed(wrong, 1))


@pytest.mark.parametrize("epsilon", [0, -1, float("inf"), float("nan"), "much"])
def test_an_epsilon_that_is_no_positive_number_is_refused(epsilon: Any) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        parse_config(changed("privacy.epsilon", epsilon))


@pytest.mark.parametrize("delta", [0, -1e-5, 0.5, 1])
def test_a_delta_that_promises_nothing_is_refused(delta: float) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.delta"):
        parse_config(changed("privacy.delta", delta))


def test_the_noise_of_the_query_is_chosen_in_one_way_and_not_in_both_or_neither() -> None:
    both = {"epsilon": 1, "delta": 1e-4, "query_error": 0.1, "query_noise_multiplier": 3}
    neither = {**both, "query_error": None, "query_noise_multiplier": None}
    for privacy in (both, neither):
        with pytest.raises(ConfigError, match="exactly one of query_error and query_noise_multiplier"):
            parse_config(changed("privacy", privacy))
    by_hand = parse_config(changed("privacy", {**both, "query_error": None}))
    assert by_hand.privacy.query_noise_multiplier == 3


def test_fine_tuning_has_no_noise_setting_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"generator\.finetune\.noise_multiplier"):
        parse_config(changed("generator.finetune.noise_multiplier", 1.0))


def test_the_same_source_cannot_be_public_and_sensitive() -> None:
    with pytest.raises(ConfigError, match="the same source"):
        parse_config(changed("public.source", SETTINGS["sensitive"]["train"]))


def test_test_images_must_exist_and_be_held_out() -> None:
    with pytest.raises(ConfigError, match="no test images"):
        parse_config(changed("sensitive.test_fraction", 0))
    with pytest.raises(ConfigError, match="held out"):
        parse_config(changed("sensitive.test", SETTINGS["sensitive"]["train"]))


def test_levels_of_the_network_must_divide_the_image() -> None:
    with pytest.raises(ConfigError, match="cannot be halved 3 times"):
        parse_config(
            {**changed("image.resolution", 12), "generator": {"network": {"channel_multipliers": [1, 1, 1, 1]}}}
        )
    with pytest.raises(ConfigError, match="attention_levels"):
        parse_config(changed("generator.network.attention_levels", [2]))
    with pytest.raises(ConfigError, match=r"classifier\.blocks"):
        parse_config(changed("classifier.blocks", [1, 1, 1, 1, 1]))


def test_a_restart_allowance_that_allows_no_restart_is_refused_unless_it_is_zero() -> None:
    with pytest.raises(ConfigError, match="restart_allowance"):
        parse_config(changed("generator.finetune.restart_allowance", 1))
    assert parse_config(changed("generator.finetune.restart_allowance", 0)).generator.finetune.restart_allowance == 0


def test_a_cap_on_the_batch_below_its_mean_is_refused() -> None:
    with pytest.raises(ConfigError, match="largest_batch_size"):
        parse_config(changed("generator.finetune.largest_batch_size", 31))
    assert (
        parse_config(changed("generator.finetune.largest_batch_size", 32)).generator.finetune.largest_batch_size == 32
    )
    assert parse_config(SETTINGS).generator.finetune.largest_batch_size is None


def test_all_problems_are_named_at_once() -> None:
    settings = {**changed("privacy.epsilon", -1), "surprise": 1, "image": {"resolution": 9, "channels": 2}}
    with pytest.raises(ConfigError) as caught:
        parse_config(settings)
    for place in ("privacy.epsilon", "surprise", "image.resolution", "image.channels"):
        assert place in str(caught.value)


def test_overrides_are_yaml_and_reach_into_sections(tiny_config: Path) -> None:
    config = load_config(
        tiny_config,
        [
            "privacy.epsilon=2.5",
            "generator.network.channel_multipliers=[1, 1]",
            "classifier.bottleneck=true",
            "selection.max_fraction=null",
            "name=other",
        ],
    )
    assert config.privacy.epsilon == 2.5
    assert config.generator.network.channel_multipliers == (1, 1)
    assert config.classifier.bottleneck is True
    assert config.selection.max_fraction is None
    assert config.name == "other"


@pytest.mark.parametrize("override", ["privacy.epsilon", "=1", "", "name.inner=1", "privacy.epsilon=[", "no.such=1"])
def test_an_override_that_makes_no_sense_is_refused(tiny_config: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        load_config(tiny_config, [override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No configuration at .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "", "1"])
def test_yaml_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "list.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_config(file)


@pytest.mark.parametrize("data", [b"a: [1, 2", b"\xff\xfe\x00", b"a: !!python/object:os.system {}\n", b"1: 2\n"])
def test_a_file_that_is_no_plain_yaml_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "broken.yaml"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        load_config(file)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_of_every_section_is_described(section: type[BaseModel]) -> None:
    fields = {name: field.description for name, field in section.model_fields.items()}
    assert [name for name, description in fields.items() if not description] == []
    assert section.__doc__


def test_the_form_of_a_run_has_every_method_that_is_registered() -> None:
    described = RunConfig.model_json_schema()["properties"]
    for name, registry in (("generator", GENERATORS), ("selection", SELECTIONS)):
        tags = [option["properties"][registry.tag]["const"] for option in described[name]["oneOf"]]
        assert tuple(tags) == registry.names
        assert described[name]["discriminator"]["propertyName"] == registry.tag


@pytest.mark.parametrize("settings", [{"kind": "vae"}, {"kind": 3}, "diffusion", [], 1])
def test_a_method_that_is_not_registered_is_answered_with_those_that_are(settings: Any) -> None:
    with pytest.raises(ConfigError, match="generator: expected a section with kind diffusion, gan, mean_embedding"):
        parse_config({**SETTINGS, "generator": settings})


def test_a_method_that_is_not_named_is_the_first_one() -> None:
    config = parse_config({**SETTINGS, "generator": {}, "selection": {}})
    assert (config.generator.kind, config.selection.strategy) == ("diffusion", "semantic")


def test_another_method_keeps_of_a_section_what_it_has_too(tiny_config: Path) -> None:
    usual = load_config(tiny_config, ["selection.categories_per_class=2", "selection.num_votes=1"])
    other = load_config(
        tiny_config, ["selection.categories_per_class=2", "selection.num_votes=1", "selection.strategy=random"]
    )
    assert other.selection.strategy == "random" and other.selection.categories_per_class == 2
    gan = load_config(tiny_config, ["generator.finetune.sigma_mean=-1", "generator.kind=gan"])
    assert gan.generator.pretrain.num_steps == usual.generator.pretrain.num_steps
    assert gan.generator.network.base_channels == 8
    with pytest.raises(ConfigError, match="this key is unknown"):
        load_config(tiny_config, ["generator.surprise=1", "generator.kind=gan"])


def test_a_whole_section_stands_for_itself(tiny_config: Path) -> None:
    config = load_config(tiny_config, ["generator={kind: gan, pretrain: {num_steps: 3}}"])
    assert config.generator.pretrain.num_steps == 3 and config.generator.pretrain.batch_size == 128


def test_all_configurations_of_the_repository_are_valid_and_have_names_of_their_own() -> None:
    files = sorted(DATASETS.glob("*.yaml"))
    names = [load_config(file).name for file in files]
    assert "demo" in names
    assert len(set(names)) == len(names)
    assert names == [file.stem for file in files]


def test_performance_alone_is_no_part_of_a_result(tiny_config: Path) -> None:
    config = load_config(tiny_config, ["performance.physical_batch_size=1"])
    assert config.model_dump(exclude={"performance"}) == load_config(tiny_config).model_dump(exclude={"performance"})


@pytest.mark.parametrize(
    ("epsilon", "delta", "said"),
    [
        (1.0, 1e-100, "privacy.delta: Input should be greater than or equal to 0.0000000001 (found 1e-100)"),
        (1.0, 1e-15, "privacy.delta"),
        (1e-9, 1e-5, "privacy.epsilon: Input should be greater than or equal to 0.0001"),
        (1e6, 1e-5, "privacy.epsilon: Input should be less than or equal to 1000"),
    ],
)
def test_an_epsilon_or_delta_that_no_accountant_can_use_is_refused_by_the_configuration_itself(
    epsilon: float, delta: float, said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_config({**SETTINGS, "privacy": {"epsilon": epsilon, "delta": delta}})
    assert said in str(refused.value)
