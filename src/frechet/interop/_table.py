"""Tables of numbers as estimators of scikit-learn take them: what is accepted, and what is said of the rest.

Anything of which NumPy makes real numbers is accepted: arrays, lists, tensors, data frames. Missing, infinite, complex,
sparse and empty data are refused. Sentences and classes of warnings are those that scikit-learn's own checks look for;
its classes are taken where it is loaded.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

ESTIMATOR = "LeastSquaresRegressor"


def numbers(method: str, name: str, values: object) -> Tensor:
    """Return `values` as a float64 tensor on the host."""
    sparse = values.layout != torch.strided if isinstance(values, Tensor) else hasattr(values, "toarray")
    if sparse:
        raise TypeError(f"{ESTIMATOR}.{method}: {name} must be dense, got a sparse matrix; make it dense first")
    array = values.detach().cpu().resolve_conj() if isinstance(values, Tensor) else np.asarray(values)
    if array.is_complex() if isinstance(array, Tensor) else np.iscomplexobj(array):
        raise ValueError(f"Complex data not supported: {ESTIMATOR}.{method}: {name} must be real, got complex numbers")
    t = array.double() if isinstance(array, Tensor) else torch.from_numpy(np.array(array, dtype=np.float64))
    if t.ndim and not len(t):
        raise ValueError(f"{ESTIMATOR}.{method}: {name} must have rows, got 0 sample(s)")
    if not bool(t.isfinite().all()):
        raise ValueError(f"{ESTIMATOR}.{method}: {name} must be finite, got NaN or infinity")
    return t


def table(method: str, X: object) -> Tensor:
    """Return X as a tensor with at least one row and one column."""
    t = numbers(method, "X", X)
    if t.ndim < 2:
        raise ValueError(
            f"{ESTIMATOR}.{method}: X must have rows and columns, got shape {tuple(t.shape)}. Reshape your data: "
            "X.reshape(-1, 1) for one feature, X.reshape(1, -1) for one sample"
        )
    if not t.shape[1]:
        raise ValueError(
            f"{ESTIMATOR}.{method}: X must have columns, got 0 feature(s) (shape={tuple(t.shape)}) while a minimum of "
            "1 is required."
        )
    return t


def target(method: str, y: object, rows: int) -> Tensor:
    """Return y ``(rows,)``; a single column is taken with a warning."""
    if y is None:
        raise ValueError(f"{ESTIMATOR}.{method}: requires y to be passed, but the target y is None")
    t = numbers(method, "y", y)
    if t.ndim == 2 and t.shape[1] == 1:
        warnings.warn(
            f"A column-vector y was passed when a 1d array was expected; {ESTIMATOR} takes y.ravel()",
            _of_scikit_learn("DataConversionWarning", UserWarning),
            stacklevel=3,
        )
        t = t[:, 0]
    if t.shape != (rows,):
        raise ValueError(f"{ESTIMATOR}.{method}: y must have shape ({rows},) like the rows of X, got {tuple(t.shape)}")
    return t


def weights(method: str, sample_weight: object, rows: int) -> Tensor:
    """Return the weights ``(rows,)`` of samples, ones if left out."""
    if sample_weight is None:
        return torch.ones(rows, dtype=torch.float64)
    t = numbers(method, "sample_weight", sample_weight)
    if t.shape != (rows,) or bool((t < 0).any()):
        raise ValueError(f"{ESTIMATOR}.{method}: sample_weight must be {rows} numbers >= 0, got shape {tuple(t.shape)}")
    if not bool((t > 0).any()):
        raise ValueError(f"{ESTIMATOR}.{method}: sample_weight must have a number > 0, got zeros alone")
    return t


def names_of_columns(X: object) -> np.ndarray | None:
    """Return the names of a data frame's columns where all are strings."""
    columns = getattr(X, "columns", None)
    found = None if columns is None else np.asarray(columns, dtype=object)
    return found if found is not None and len(found) and all(isinstance(c, str) for c in found) else None


def check_columns(X: object, columns: int, names: np.ndarray | None, expected: int) -> None:
    """Raise where `columns` and the names of X are not those of the fit, `expected` and `names`."""
    if columns != expected:
        raise ValueError(f"X has {columns} features, but {ESTIMATOR} is expecting {expected} features as input.")
    given = names_of_columns(X)
    if given is None and names is None:
        return
    if given is None:
        warnings.warn(
            f"X does not have valid feature names, but {ESTIMATOR} was fitted with feature names", stacklevel=3
        )
    elif names is None:
        warnings.warn(f"X has feature names, but {ESTIMATOR} was fitted without feature names", stacklevel=3)
    elif list(given) != list(names):
        unseen, missing = sorted(set(given) - set(names)), sorted(set(names) - set(given))
        lines = ["The feature names should match those that were passed during fit."]
        lines += ["Feature names unseen at fit time:", *(f"- {name}" for name in unseen)] if unseen else []
        lines += (
            ["Feature names seen at fit time, yet now missing:", *(f"- {name}" for name in missing)] if missing else []
        )
        if not unseen and not missing:
            lines.append("Feature names must be in the same order as they were in fit.")
        raise ValueError("\n".join(lines) + "\n")


def not_fitted() -> Exception:
    """Return the error for an estimator that is not fitted, a ValueError."""
    kind = _of_scikit_learn("NotFittedError", ValueError)
    return kind(f"{ESTIMATOR}: call fit(X, y) first, got an estimator that is not fitted")


def _of_scikit_learn(name: str, other: type) -> Any:
    return getattr(sys.modules.get("sklearn.exceptions"), name, other)
