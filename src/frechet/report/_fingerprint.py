"""A digest of all that the numbers of a report depend on: an unfinished run goes on only where nothing has changed.

    version, settings, number of processes | the code: the file that was named and what it imports from its own folder,
    the classes of the model's modules | the point, frozen parameters, buffers, modes, plain attributes of modules |
    criteria and penalties with what their functions close over | every batch

Values are digested, never addresses or times, so that the same run of another process has the same digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sys
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frechet.objective import Objective
from frechet.objective._data import untouched_generators

DEEP = 24  # levels of nesting that are followed; real configurations have fewer than ten
LIBRARIES = ("torch", "frechet", "numpy", "builtins")  # their version stands for their code


class Digest:
    """SHA-256 of values of any structure; what was met before is referred to by its number."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.met: dict[int, int] = {}
        self.kept: list[object] = []  # so that no id is given out twice

    def add(self, x: object, level: int = 0) -> None:
        """Feed a value."""
        if isinstance(x, Tensor):
            try:
                self._tensor(x)
            except (RuntimeError, TypeError):  # one without numbers: on the meta device, or of a type of its own
                self._text("no numbers")
        elif isinstance(x, np.ndarray) and x.dtype != object:
            self._text("array", str(x.dtype), str(x.shape))
            self.hash.update(np.ascontiguousarray(x).tobytes())
        elif x is None or isinstance(x, bool | int | float | complex | str | bytes | Enum | torch.dtype | torch.device):
            self._text(type(x).__name__, repr(x))
        elif id(x) in self.met:
            self._text("again", str(self.met[id(x)]))
        elif level < DEEP:
            self.met[id(x)] = len(self.met)
            self.kept.append(x)
            self._structure(x, level + 1)

    def _text(self, *parts: str) -> None:
        for part in parts:
            data = part.encode("utf-8", "surrogatepass")
            self.hash.update(len(data).to_bytes(8, "little") + data)

    def _tensor(self, x: Tensor) -> None:
        self._text("tensor", str(x.dtype), str(tuple(x.shape)), str(x.layout))
        with torch.no_grad():
            if x.layout is not torch.strided or x.is_nested:
                parts = x.detach().unbind() if x.is_nested else (x.detach().to_dense(),)
                for part in parts:
                    self._tensor(part)
                return
            flat = x.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            self.hash.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")

    def _structure(self, x: object, level: int) -> None:
        if isinstance(x, Mapping):
            self._text("mapping", str(len(x)))
            for key, value in x.items():
                self.add(key, level)
                self.add(value, level)
        elif isinstance(x, list | tuple):
            self._text(type(x).__name__, str(len(x)))
            for item in x:
                self.add(item, level)
        elif isinstance(x, set | frozenset):
            self._text("set", *sorted(map(repr, x)))
        elif isinstance(x, CodeType | FunctionType | MethodType | type | ModuleType):
            self._program(x, level)
        else:
            self._object(x, level)

    def _program(self, x: CodeType | FunctionType | MethodType | type | ModuleType, level: int) -> None:
        match x:
            case CodeType():
                self._code(x, level)
            case FunctionType():
                self._function(x, level)
            case MethodType():
                self.add(x.__func__, level)
                self.add(x.__self__, level)
            case ModuleType():
                self._text("module", x.__name__)
            case _:
                self._text("class", x.__module__, x.__qualname__, _source(x))

    def _object(self, x: object, level: int) -> None:
        self.add(type(x), level)
        if isinstance(x, torch.Generator):
            self._tensor(x.get_state())
        elif dataclasses.is_dataclass(x):
            for field in dataclasses.fields(x):
                self._text(field.name)
                self.add(getattr(x, field.name, None), level)
        else:
            hidden = "_" if _installed(type(x).__module__) else "__"  # private: a library's caches and hashes
            state = {k: v for k, v in getattr(x, "__dict__", {}).items() if not k.startswith(hidden)}
            slots = {
                k: getattr(x, k) for k in getattr(type(x), "__slots__", ()) if isinstance(k, str) and hasattr(x, k)
            }
            for name, value in sorted({**state, **slots}.items()):
                self._text(name)
                self.add(value, level)

    def _function(self, x: FunctionType, level: int) -> None:
        self._text("function", x.__module__ or "", x.__qualname__)
        self.add([x.__defaults__, x.__kwdefaults__], level)
        self.add([_content(cell) for cell in x.__closure__ or ()], level)
        self.add(x.__code__, level)
        if _installed(x.__module__):
            return
        for name in sorted(_names(x.__code__)):  # what its body reads of its module
            if name in x.__globals__ and not isinstance(x.__globals__[name], ModuleType):
                self._text(name)
                self.add(x.__globals__[name], level)

    def _code(self, x: CodeType, level: int) -> None:
        self.hash.update(x.co_code)
        self._text(*x.co_names, *x.co_varnames)
        for constant in x.co_consts:
            self.add(constant, level)


def fingerprint(objective: Objective, source: str, settings: object, version: str) -> str:
    """Return the digest of a run, of all processes together. It reads the data once."""
    digest = Digest()
    ranks = 1 if objective.group is None else objective.group.size
    digest.add([version, torch.__version__, source, settings, ranks, repr(objective.space)])
    for path in _files(source):
        digest.add(path.name)
        digest.add(path.read_bytes())
    digest.add(objective.point)
    _model(digest, objective.model)
    digest.add([objective.dropout_seed, [(w, p) for w, p in objective.penalties]])
    for part in objective.parts:
        digest.add([part.criterion, part.weight, str(part.dtype), part.population, part.split])
        digest.add("data")
        _data(digest, part.data)
    own = digest.hash.hexdigest()
    if objective.group is None:
        return own
    return hashlib.sha256("".join(objective.group.objects(own)).encode()).hexdigest()


def _data(digest: Digest, data: Iterable[object]) -> None:
    """Every batch. Data that cannot be read are left to the check, which says what is wrong with them."""
    try:
        with untouched_generators():
            for batch in data:
                digest.add(batch)
    except Exception as error:
        digest.add(["unreadable", type(error)])


def _model(digest: Digest, model: nn.Module) -> None:
    """The model's modules in order: class, mode, plain attributes, hooks; and its tensors by name."""
    for name, module in model.named_modules():
        digest.add([name, type(module), module.training])
        own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules", "training")}
        digest.add(sorted((k, v) for k, v in own.items() if not (k.startswith("_") and _empty(v))), 1)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        digest.add([name, tensor, tensor.requires_grad])


def _empty(value: object) -> bool:
    """Whether a private attribute holds nothing yet, such as the hooks of a module that has none."""
    if value is None or value is False:
        return True
    return type(value) in (int, str, list, tuple, dict, set, OrderedDict) and not value


def _files(source: str) -> Iterable[Path]:
    """The file that was named, and what was imported from its folder."""
    path, _, _ = source.rpartition(":")
    file = Path(path)
    if not path.endswith(".py") or not file.is_file():
        return []
    folder = file.resolve().parent
    known = [getattr(m, "__file__", None) for m in list(sys.modules.values())]
    beside = {Path(f).resolve() for f in known if f and f.endswith(".py")}
    inside = {f for f in beside if f.is_relative_to(folder) and "site-packages" not in f.parts and f.is_file()}
    return sorted({file.resolve(), *inside})


def _source(x: type) -> str:
    """The text of a class outside of the libraries; of those, and where there is no text, nothing."""
    if x.__module__.split(".")[0] in LIBRARIES:
        return ""
    try:
        return inspect.getsource(x)
    except (OSError, TypeError):
        return ""


def _installed(module: str | None) -> bool:
    """Whether a module is of a library or of Python itself: its functions read settings and caches, not the user's."""
    name = (module or "").split(".")[0]
    if name in LIBRARIES or name in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    return file is not None and bool({"site-packages", "dist-packages"} & set(Path(file).parts))


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def _names(code: CodeType) -> set[str]:
    inner = [_names(c) for c in code.co_consts if isinstance(c, CodeType)]
    return set(code.co_names).union(*inner)
