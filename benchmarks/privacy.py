"""What the privacy machinery costs: calibration, tightness, appending to a long ledger, secret noise.

    python -m benchmarks.privacy

Calibration is for 50,000 images, batches of 4,096, 2,000 steps and a query; seconds are processor time, best of three.
The ledger has 1,000 entries and is opened before the clock starts; requests are HTTP requests that an S3 server on the
loopback interface answered. Noise for 4 M parameters is set against a step of a U-Net of 3.8 M at 32 x 32 x 3: against an
ordinary forward and backward pass on one thread, since a DP-SGD step takes no less. The last line is one JSON object.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import dp_accounting as dpa
import numpy as np
import torch
from moto.server import ThreadedMotoServer

from privimage.generators.diffusion.denoiser import new_denoiser
from privimage.methods.generators.diffusion import DenoiserConfig
from privimage.privacy.accounting import calibrate_noise_multiplier, epsilon_of
from privimage.privacy.budget import Plan
from privimage.privacy.crosscheck import prv_interval
from privimage.privacy.entropy import SecretRandom
from privimage.privacy.ledger import Ledger
from privimage.store.files import Store

DELTA = 1e-5
QUERY = dpa.GaussianDpEvent(50.0)
ENTRIES = 1000
PARAMETERS = 4_000_000
NETWORK = DenoiserConfig(base_channels=64, channel_multipliers=(1, 2, 2))
BATCHES = (256, 1024, 4096)


def steps(noise_multiplier: float) -> dpa.DpEvent:
    sampled = dpa.PoissonSampledDpEvent(4096 / 50_000, dpa.GaussianDpEvent(noise_multiplier))
    return dpa.SelfComposedDpEvent(sampled, 2000)


def calibration() -> dict[str, dict[str, float]]:
    """Per epsilon: seconds, noise multiplier, and by how much the reported epsilon exceeds the certified lower bound."""
    found = {}
    for epsilon in (0.1, 1.0, 10.0):
        seconds = []
        for repeat in range(3):
            begun = time.process_time()
            # A prior that was not met before, so that nothing is found in a cache.
            noise = calibrate_noise_multiplier(
                steps, epsilon=epsilon, delta=DELTA, prior=[dpa.GaussianDpEvent(50.0 + repeat * 1e-9)]
            )
            seconds.append(time.process_time() - begun)
        events = [QUERY, steps(noise)]
        reported, (lower, upper) = epsilon_of(events, DELTA), prv_interval(events, DELTA)
        found[f"{epsilon:g}"] = {
            "seconds": round(min(seconds), 2),
            "noise_multiplier": round(noise, 4),
            "reported": round(reported, 6),
            "certified_lower": round(lower, 6),
            "certified_upper": round(upper, 6),
            "gap_percent": round(100 * (reported - lower) / reported, 3),
        }
        print(f"epsilon {epsilon:g}: {found[f'{epsilon:g}']}", flush=True)
    return found


def long_ledger() -> Store:
    """A ledger of 1,000 entries, in memory."""
    store = Store.open(f"memory://benchmark-{os.getpid()}")
    ledger = Ledger(store, "faces")
    ledger.grant(epsilon=1000.0, delta=DELTA, num_images=50_000, name="faces")
    event = dpa.GaussianDpEvent(50.0)
    while len(ledger.entries()) < ENTRIES:
        number = len(ledger.entries())
        plan = Plan(id=f"plan-{number}", epsilon=1.0, delta=DELTA, intends=(event,))
        reservation = ledger.reserve(
            stage="query", key=f"{number}", event=event, plan=plan, num_images=50_000, run="benchmark"
        )
        if len(ledger.entries()) < ENTRIES:
            ledger.settle(reservation, artifact="0" * 64)
    return store


def append(store: Store, source: Store, count_requests: Callable[[], int]) -> dict[str, float]:
    """Seconds and requests of one reservation, by a process that has read the ledger, and by one that has not."""
    for name in source.list("ledger"):
        store.create(name, source.read(name))
    seconds, requests = [], []
    begun, before = time.monotonic(), count_requests()
    ledger = Ledger(store, "faces")
    assert len(ledger.entries()) == ENTRIES
    opening, opening_requests = time.monotonic() - begun, count_requests() - before
    event = dpa.GaussianDpEvent(50.0)
    for number in range(9):
        plan = Plan(id=f"another-{number}", epsilon=1.0, delta=DELTA, intends=(event,))
        begun, before = time.monotonic(), count_requests()
        ledger.reserve(stage="query", key=f"{number}", event=event, plan=plan, num_images=50_000, run="benchmark")
        seconds.append(time.monotonic() - begun)
        requests.append(count_requests() - before)
    return {
        "append_ms": round(1000 * statistics.median(seconds), 1),
        "append_requests": max(requests),
        "opening_ms": round(1000 * opening, 1),
        "opening_requests": opening_requests,
    }


def on_s3(source: Store) -> dict[str, float]:
    answered: list[logging.LogRecord] = []

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            answered.append(record)

    logger = logging.getLogger("werkzeug")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [Count()]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=True)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    import s3fs

    s3fs.S3FileSystem().call_s3("create_bucket", Bucket="benchmark")
    try:
        return append(Store.open("s3://benchmark/store"), source, lambda: len(answered))
    finally:
        server.stop()


def noise() -> float:
    """Processor seconds of secret Gaussian noise for 4 M parameters, as float32 on the sum."""
    random, seconds = SecretRandom(), []
    for _ in range(5):
        begun = time.process_time()
        random.normal(PARAMETERS).astype(np.float32)
        seconds.append(time.process_time() - begun)
    return statistics.median(seconds)


def step_of_one_image(images: int = 32) -> float:
    """Processor seconds of an ordinary training step, without an optimizer, for each image and draw."""
    torch.set_num_threads(1)
    denoiser = new_denoiser(NETWORK, channels=3, num_classes=10, seed=0)
    x, labels, sigma = torch.rand(images, 3, 32, 32), torch.zeros(images, dtype=torch.int64), torch.ones(images)
    seconds = []
    for _ in range(4):
        begun = time.process_time()
        denoiser.weighted_error(denoiser(x + torch.randn_like(x), sigma, labels), x, sigma).mean().backward()
        seconds.append(time.process_time() - begun)
    return min(seconds) / images


def main() -> None:
    found: dict[str, object] = {"calibration": calibration()}
    source = long_ledger()
    with tempfile.TemporaryDirectory() as folder:
        found["ledger_folder"] = append(Store.open(folder), source, lambda: 0)
    print(f"ledger in a folder: {found['ledger_folder']}", flush=True)
    found["ledger_s3"] = on_s3(source)
    print(f"ledger on S3: {found['ledger_s3']}", flush=True)
    seconds, of_one_image = noise(), step_of_one_image()
    found["noise_seconds_4m"] = round(seconds, 3)
    found["step_seconds_an_image"] = round(of_one_image, 4)
    found["noise_percent_of_a_step"] = {
        f"{batch} images": round(100 * seconds / (batch * of_one_image + seconds), 2) for batch in BATCHES
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
