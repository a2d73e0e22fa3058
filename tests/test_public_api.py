"""What the library offers by name, and that it stands alone."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import privimage
from tests.pipeline_fixtures import Place

PACKAGES_AND_MODULES = ["privimage", *(m.name for m in pkgutil.walk_packages(privimage.__path__, "privimage."))]


def defined_in(module: ModuleType) -> set[str]:
    """Functions and classes that are written in a module and whose name does not begin with an underscore."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    }


@pytest.mark.parametrize("name", PACKAGES_AND_MODULES)
def test_all_lists_what_the_module_has_for_others_and_nothing_else(name: str) -> None:
    module = import_module(name)
    listed = getattr(module, "__all__", [])
    assert [item for item in listed if not hasattr(module, item)] == []
    assert len(set(listed)) == len(listed)
    assert defined_in(module) - set(listed) <= {"T"}
    assert module.__doc__


def test_the_library_is_there_without_prefect_and_without_the_application() -> None:
    program = (
        "import pkgutil, sys, importlib, privimage\n"
        "for module in pkgutil.walk_packages(privimage.__path__, 'privimage.'): importlib.import_module(module.name)\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'prefect', 'tasks', 'flows'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_looking_at_a_ledger_and_planning_load_no_torch() -> None:
    program = (
        "import sys, privimage.cli, privimage.running.plan, privimage.privacy.ledger; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_public_names_are_there_and_nothing_is_loaded_before_it_is_asked_for() -> None:
    program = (
        "import sys, privimage\n"
        "before = {name for name in sys.modules if name.startswith('privimage.')}\n"
        "found = [getattr(privimage, name) for name in privimage.__all__]\n"
        "print(before, None in found, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set() False False\n"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = privimage.nonsense


def test_the_example_of_the_package_runs(granted_copy: Place) -> None:
    from privimage import Run, Store, load_config, plan_run

    run = Run(config=load_config(granted_copy.config), store=Store.open(str(granted_copy.folder)))
    assert plan_run(run).epsilon == 1.0 and granted_copy.kinds == ["grant"]


def test_types_travel_with_the_package() -> None:
    assert (Path(privimage.__file__).parent / "py.typed").exists()
