"""Quality against the size of the generator: one run for each width, all on the same query and selection.

    python -m benchmarks.model_size deployments/datasets/demo.yaml --channels 16 24 48 [--set A.B=C] [--plot FILE.svg]

All stages up to `select` are run once. Their store is then copied for each width, because in one store the second
fine-tuning would be accounted after the first, and get more noise for the same epsilon. What is printed compares with real
test images and is not differentially private: use this with public stand-ins for sensitive data only.

parameters   of the generator; MB: of its weights
accuracy     on the real test images, of the classifier that `evaluate` trains on the synthetic ones
fid          on the public classifier's features; - where there are too few images for it
ms           for a synthetic image
seconds      of pre-training and of fine-tuning

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from privimage.config.loading import load_config
from privimage.config.run import RunConfig
from privimage.generators.diffusion import kind as diffusion
from privimage.machine.progress import Terminal
from privimage.reports.pictures import curve_svg
from privimage.running.granting import grant
from privimage.running.runner import run_all
from privimage.running.runs import Run
from privimage.store.artifacts import open_ref
from privimage.store.files import Store


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a width came to."""

    channels: int
    parameters: int
    megabytes: float
    accuracy: float
    fid: float | None
    ms_per_image: float
    seconds_pretrain: float
    seconds_finetune: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32, 64], help="generator.network.base_channels")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C")
    parser.add_argument("--folder", type=Path, help="where the stores are; default: a temporary folder")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="write accuracy against parameters")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        shared = _shared_stages(load_config(options.config, options.set), folder / "shared")
        rows = []
        print("channels  parameters     MB  accuracy    fid     ms  seconds")
        for channels in options.channels:
            config = load_config(options.config, [*options.set, f"generator.network.base_channels={channels}"])
            rows.append(row := _measured(config, shared, folder / str(channels)))
            fid = "-" if row.fid is None else f"{row.fid:.3g}"
            print(
                f"{channels:8}  {row.parameters:10,}  {row.megabytes:5.1f}  {row.accuracy:8.1%}  {fid:>5}  "
                f"{row.ms_per_image:5.1f}  {row.seconds_pretrain:.0f} + {row.seconds_finetune:.0f}",
                flush=True,
            )
    if options.plot:
        points = [(row.parameters, row.accuracy) for row in rows]
        title = "Accuracy on real test images by parameters of the generator"
        options.plot.write_text(curve_svg({"accuracy": points}, "parameters", "accuracy", title))
    print(json.dumps({"config": config.name, "epsilon": config.privacy.epsilon, "rows": [asdict(row) for row in rows]}))


def _shared_stages(config: RunConfig, folder: Path) -> Path:
    """A store with everything up to the selection, and a budget for one run."""
    run = Run(config=config, store=Store.open(str(folder)), progress=Terminal())
    grant(run, epsilon=100.0, delta=config.privacy.delta, name="benchmark")
    run_all(run, "select")
    return folder


def _measured(config: RunConfig, shared: Path, folder: Path) -> Row:
    """One width, in a copy of the store."""
    if not folder.exists():
        shutil.copytree(shared, folder)
    run = Run(config=config, store=Store.open(str(folder)), progress=Terminal())
    artifacts = {name: open_ref(run.store, result.ref) for name, result in run_all(run).items()}
    seconds = {name: float(str(item.manifest.provenance["seconds"])) for name, item in artifacts.items()}
    metrics = artifacts["evaluate"].read_json("metrics.json")
    fid = metrics["fidelity"]["public-classifier"]["overall"].get("FID")
    return Row(
        channels=diffusion.settings_of(config.generator).network.base_channels,
        parameters=int(str(artifacts["pretrain"].manifest.metrics["num_parameters"])),
        megabytes=artifacts["finetune"].manifest.files["generator.safetensors"].size / 1e6,
        accuracy=metrics["accuracy_on_private_test"],
        fid=None if fid is None else fid["value"],
        ms_per_image=1000 * seconds["synthesize"] / config.synthesize.num_images,
        seconds_pretrain=seconds["pretrain"],
        seconds_finetune=seconds["finetune"],
    )


if __name__ == "__main__":
    main()
