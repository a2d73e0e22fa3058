"""What a private step costs beside an ordinary one: time, and peak memory, of per-image clipped gradient sums.

    python -m benchmarks.dp_step

All methods compute the same 64 rows at once. `nonprivate` is an ordinary forward and backward pass with a summed
gradient and no clipping. In one process and one thread, methods take turns; ratios are taken within each round, and
medians over the rounds. Times are CPU time of the process unless called wall time. Peak memory is the resident set
above what the process held before its first step, in a process of its own for each method (Linux only).

Opacus's ghost clipping clips rows, so it has no figure where an image has several draws.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call

from privimage.generators.diffusion.denoiser import Denoiser, new_denoiser
from privimage.methods.generators.diffusion import DenoiserConfig
from privimage.privacy.entropy import SecretRandom
from privimage.privacy.gradients import Backend, gradient_engine

ROWS = 64
MAX_GRAD_NORM = 1e-3
ENGINES: dict[str, Backend] = {"bookkeeping": "bookkeeping", "vmap": "vmap", "opacus_hooks": "opacus"}
METHODS = ["nonprivate", *ENGINES, "ghost"]
# Of a realistic step, for the share of noise.
EXPECTED_IMAGES, EXPECTED_DRAWS, NOISE_PARAMETERS = 256, 8, 4_000_000

Step = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A U-Net, an image size, and how 64 rows are made of images and draws."""

    config: DenoiserConfig
    channels: int
    resolution: int
    draws: int


SMALL = DenoiserConfig(base_channels=40, channel_multipliers=(1, 1, 2), attention_levels=(2,))
LARGE = DenoiserConfig(base_channels=64, channel_multipliers=(1, 2, 2))
SETTINGS = {
    "1.2M 28x28x1, 8 images x 8 draws": Setting(config=SMALL, channels=1, resolution=28, draws=8),
    "1.2M 28x28x1, 64 images x 1 draw": Setting(config=SMALL, channels=1, resolution=28, draws=1),
    "3.8M 32x32x3, 8 images x 8 draws": Setting(config=LARGE, channels=3, resolution=32, draws=8),
    "3.8M 32x32x3, 64 images x 1 draw": Setting(config=LARGE, channels=3, resolution=32, draws=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--methods", default=",".join(METHODS), metavar="A,B")
    parser.add_argument("--only", default="", metavar="TEXT", help="settings whose name contains it")
    parser.add_argument("--memory-of", nargs=2, metavar=("SETTING", "METHOD"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        print(_memory_mb(*options.memory_of))
        return
    methods = [name for name in METHODS if name in {"nonprivate", *options.methods.split(",")}]
    figures = {}
    for name, setting in SETTINGS.items():
        if options.only in name:
            figures[name] = _measure(name, setting, methods, options.rounds)
    print(
        json.dumps(
            {
                "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}, 1 thread",
                "rounds": options.rounds,
                "load": round(os.getloadavg()[0], 1),
                "settings": figures,
                "noise_share_of_step": _noise_share(figures),
            }
        )
    )


def _measure(name: str, setting: Setting, methods: list[str], rounds: int) -> dict[str, object]:
    cpu, wall = _times(setting, methods, rounds)
    memory = {
        method: float(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.dp_step", "--memory-of", name, method],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for method in cpu
    }
    print(f"\n{name}\n{'':14}{'ms':>8}{'ratio':>8}{'wall':>8}{'MB':>8}{'ratio':>8}")
    for method in cpu:
        print(
            f"{method:14}{1e3 * statistics.median(cpu[method]):8.0f}{_ratio(cpu, method, 'nonprivate'):8.3f}"
            f"{_ratio(wall, method, 'nonprivate'):8.3f}{memory[method]:8.0f}{memory[method] / memory['nonprivate']:8.2f}",
            flush=True,
        )
    figures: dict[str, object] = {
        "ms": {method: round(1e3 * statistics.median(cpu[method]), 1) for method in cpu},
        "ms_least": {method: round(1e3 * min(cpu[method]), 1) for method in cpu},
        "peak_mb": {method: round(memory[method]) for method in cpu},
    }
    if "bookkeeping" in cpu:
        figures["ratio_to_nonprivate"] = round(_ratio(cpu, "bookkeeping", "nonprivate"), 3)
        figures["ratio_to_nonprivate_wall"] = round(_ratio(wall, "bookkeeping", "nonprivate"), 3)
        figures["ratio_to_nonprivate_least"] = round(min(cpu["bookkeeping"]) / min(cpu["nonprivate"]), 3)
        figures["peak_memory_ratio"] = round(memory["bookkeeping"] / memory["nonprivate"], 2)
    if {"bookkeeping", "opacus_hooks"} <= cpu.keys():
        figures["speedup_over_opacus_hooks"] = round(_ratio(cpu, "opacus_hooks", "bookkeeping"), 2)
    return figures


def _times(setting: Setting, methods: list[str], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each round, as CPU and as wall time; methods take turns."""
    steps = {method: step for method in methods if (step := _step(setting, method))}
    for step in steps.values():
        step()
    cpu: dict[str, list[float]] = {method: [] for method in steps}
    wall: dict[str, list[float]] = {method: [] for method in steps}
    for _ in range(rounds):
        for method, step in steps.items():
            begun, begun_wall = time.process_time(), time.perf_counter()
            step()
            cpu[method].append(time.process_time() - begun)
            wall[method].append(time.perf_counter() - begun_wall)
    return cpu, wall


def _ratio(times: dict[str, list[float]], method: str, reference: str) -> float:
    return statistics.median(a / b for a, b in zip(times[method], times[reference], strict=True))


def _memory_mb(name: str, method: str) -> float:
    step = _step(SETTINGS[name], method)
    assert step is not None
    before = _status_kb("VmRSS")
    for _ in range(3):
        step()
    return (_status_kb("VmHWM") - before) / 1024


def _status_kb(field: str) -> int:
    """Of this process. (`ru_maxrss` would begin at the parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field + ":")))


def _step(setting: Setting, method: str) -> Step | None:
    """A function that computes the gradient sum of 64 rows, or None if the method cannot."""
    denoiser = new_denoiser(setting.config, channels=setting.channels, num_classes=10, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    shape = (setting.channels, setting.resolution, setting.resolution)
    images = 2 * torch.rand(ROWS // setting.draws, *shape, generator=generator) - 1
    labels = torch.randint(0, 10, (len(images),), generator=generator)
    rows = [
        images.repeat_interleave(setting.draws, 0),
        labels.repeat_interleave(setting.draws, 0),
        torch.rand(ROWS, generator=generator) + 0.1,
        torch.randn(ROWS, *shape, generator=generator),
    ]

    def loss(network: Callable[..., Tensor], images: Tensor, labels: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        denoised = network(images + sigma.view(-1, 1, 1, 1) * noise, sigma, labels)
        return denoiser.weighted_error(denoised, images, sigma)

    parameters = {name: parameter.detach() for name, parameter in denoiser.named_parameters()}
    if method == "nonprivate":

        def ordinary() -> object:
            own = {name: parameter.clone().requires_grad_() for name, parameter in parameters.items()}
            losses = loss(lambda *args: functional_call(denoiser, own, args), *rows)
            return torch.autograd.grad(losses.sum() / setting.draws, list(own.values()))

        return ordinary
    if method == "ghost":
        return _ghost_step(denoiser, loss, rows) if setting.draws == 1 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = gradient_engine(denoiser, loss, backend=ENGINES[method])
    return lambda: engine.clipped_sum(
        parameters, rows, draws=setting.draws, max_grad_norm=MAX_GRAD_NORM, rows_at_once=ROWS
    )


def _ghost_step(denoiser: Denoiser, loss: Callable[..., Tensor], rows: list[Tensor]) -> Step:
    """Opacus's fast gradient clipping: norms in one backward pass, the weighted sum in a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.grad_sample import GradSampleModuleFastGradientClipping

        hooked = GradSampleModuleFastGradientClipping(
            denoiser, batch_first=True, loss_reduction="sum", max_grad_norm=MAX_GRAD_NORM, use_ghost_clipping=True
        )
    parameters = list(hooked.parameters())

    def step() -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hooked.enable_hooks()
            losses = loss(hooked, *rows)
            losses.sum().backward(retain_graph=True)
            factors = hooked.get_clipping_coef()
            hooked.disable_hooks()
            hooked.zero_grad(set_to_none=True)
            found = torch.autograd.grad((factors * losses).sum(), parameters)
            hooked.zero_grad(set_to_none=True)
        return found

    return step


def _noise_share(figures: dict[str, dict[str, object]]) -> float | None:
    """Share of secret noise for 4 M parameters in a step of 256 images x 8 draws, from the large network's time."""
    timed = figures.get("3.8M 32x32x3, 8 images x 8 draws")
    if timed is None:
        return None
    random = SecretRandom()
    seconds = []
    for _ in range(5):
        begun = time.process_time()
        random.normal(NOISE_PARAMETERS)
        seconds.append(time.process_time() - begun)
    noise = statistics.median(seconds)
    step = EXPECTED_IMAGES * EXPECTED_DRAWS / ROWS * timed["ms"]["bookkeeping"] / 1e3  # type: ignore[index]
    print(f"\nsecret noise, {NOISE_PARAMETERS:,} draws: {1e3 * noise:.0f} ms of a step of {step + noise:.1f} s")
    return float(round(noise / (step + noise), 4))


if __name__ == "__main__":
    main()
