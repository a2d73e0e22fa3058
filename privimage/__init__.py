"""privimage: differentially private synthetic images from a sensitive labelled image set.

What a script needs, loaded when it is asked for:

    from privimage import Run, Store, load_config, plan_run, run_all

    run = Run(config=load_config("deployments/datasets/demo.yaml"), store=Store.open(".privimage"))
    print(plan_run(run).epsilon)  # nothing is run or charged
    run_all(run)  # charges the ledger, whose owner has to have granted a budget

A pure library: it imports neither Prefect nor the `tasks` and `flows` of this repository, and runs anywhere.
Start reading at `privimage.pipeline.table`, the stages as data.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privimage.config.loading import load_config
    from privimage.config.run import RunConfig
    from privimage.errors import (
        BudgetExceeded,
        ConfigError,
        DataError,
        InputError,
        PrivacyRefused,
        PrivimageError,
        Stopped,
        StoreError,
        Uncharged,
    )
    from privimage.methods.registry import GENERATORS, SELECTIONS
    from privimage.release.verify import read_release, verify_release
    from privimage.running.plan import plan_run
    from privimage.running.runner import run_all, run_stage
    from privimage.running.runs import Run
    from privimage.store.files import Store

# OpenMP's idle threads spin for long by default: beside any other busy process a torch step then takes several times
# longer. This many turns cost nothing on a quiet machine. Read when torch is first imported; what the user set stays.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
__all__ = [
    "GENERATORS",
    "SELECTIONS",
    "BudgetExceeded",
    "ConfigError",
    "DataError",
    "InputError",
    "PrivacyRefused",
    "PrivimageError",
    "Run",
    "RunConfig",
    "Stopped",
    "Store",
    "StoreError",
    "Uncharged",
    "__version__",
    "load_config",
    "plan_run",
    "read_release",
    "run_all",
    "run_stage",
    "verify_release",
]

_ERRORS = (
    *("BudgetExceeded", "ConfigError", "DataError", "InputError", "PrivacyRefused", "PrivimageError", "Stopped"),
    *("StoreError", "Uncharged"),
)
_PLACES = {
    **dict.fromkeys(_ERRORS, "errors"),
    **dict.fromkeys(("GENERATORS", "SELECTIONS"), "methods.registry"),
    **dict.fromkeys(("read_release", "verify_release"), "release.verify"),
    **dict.fromkeys(("run_all", "run_stage"), "running.runner"),
    "Run": "running.runs",
    "RunConfig": "config.run",
    "Store": "store.files",
    "load_config": "config.loading",
    "plan_run": "running.plan",
}


def __getattr__(name: str) -> Any:
    """The public names: their modules are imported when they are asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
