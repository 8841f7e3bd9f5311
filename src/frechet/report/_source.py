"""From what the user typed to an objective: a built-in problem, or ``path/to/file.py:function``.

Started on several processes, each runs this. An objective that the function made with ``group=`` stays as it is, one
without is shared out batch by batch, a built-in one example by example, with the parameters that rank 0 has trained.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from frechet.objective import Objective
from frechet.report._problems import PROBLEMS
from frechet.space import Group
from frechet.space._group import is_shared


class BadSource(ValueError):
    """What was named cannot be turned into an objective; the message is one sentence for the user."""


def load(source: str, group: Group | None = None) -> tuple[Objective, str]:
    """Return the objective that `source` names, and a title. With a group, every rank must call."""
    if group is None:
        return _load(source)
    objective, title = group.together(lambda: _load(source))
    if objective.group is not None:
        return objective, title
    if source in PROBLEMS:
        objective.model.load_state_dict(group.first(objective.model.state_dict()))
        return objective.sharded("world", by="example"), title
    return objective.sharded("world"), title


def restricted(objective: Objective, patterns: Sequence[str]) -> Objective:
    """The objective on the parameters whose names match one of `patterns`; the model's other parameters are frozen."""
    if not patterns:
        return objective
    kept = set(objective.space.restrict(list(patterns)).names)
    for name, parameter in objective.model.named_parameters():
        if name in objective.space.names and name not in kept:
            parameter.requires_grad_(False)
    return objective * 1.0  # its space is read from the model anew


def _load(source: str) -> tuple[Objective, str]:
    if source in PROBLEMS:
        try:
            return PROBLEMS[source](), source
        except ImportError as error:
            raise BadSource(str(error)) from error
    function, file, name = _named(source)
    try:
        objective = function()
    except Exception as error:
        if is_shared(error):
            raise
        raise BadSource(f"{source} raised {_told(error, file)}") from error
    if not isinstance(objective, Objective):
        raise BadSource(f"{source} must return a frechet.Objective, got {type(objective).__name__}")
    if objective.space.shard is not None:
        raise BadSource(
            f"{source} must return an objective with whole parameters, got sharded ones (fully_shard); load every "
            "p.full_tensor() into a model of its own"
        )
    return objective, f"{file.stem}:{name}"


def _named(source: str) -> tuple[Callable[[], object], Path, str]:
    """The function that ``path/to/file.py:function`` means, with its file and its name."""
    path, colon, name = source.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise BadSource(
            f"source must be one of {', '.join(PROBLEMS)} or path/to/file.py:function, got '{source}'"
            + (f"; did you mean {source}:make?" if source.endswith(".py") else "")
        )
    file = Path(path)
    if not file.is_file():
        raise BadSource(f"file '{path}' does not exist; give path/to/file.py:function")
    function = getattr(_module(file), name, None)
    if function is None:
        raise BadSource(f"'{path}' has no function '{name}'; it must be a function that returns a frechet.Objective")
    if not callable(function):
        raise BadSource(f"'{name}' in '{path}' must be a function without arguments, got {type(function).__name__}")
    return function, file, name


def _module(file: Path) -> object:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise BadSource(f"'{file}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # data loader workers and pickles look it up there
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # so that it can import what lies beside it, as `python file.py` can
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadSource(f"'{file}' raised {_told(error, file)}") from error
    return module


def _told(error: BaseException, file: Path) -> str:
    """One line: kind, message, and the line of the user's own file."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == file.name]
    message = (str(error).strip().splitlines() or [""])[0]
    where = f" (line {lines[-1]} of {file.name})" if lines else ""
    return f"{type(error).__name__}: {message}{where}"
