"""`least_squares` with the methods of scikit-learn's regressors; to fit and predict scikit-learn is not needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frechet.operators.jacobian import jacobian
from frechet.solve.least_squares import Bound, Method, least_squares
from frechet.solve.least_squares_result import LeastSquaresSolution
from frechet.solve.residual import Parameters
from frechet.solve.robust import Loss

NAMES = ("model", "start", "bounds", "loss", "loss_scale", "method")


class LeastSquaresRegressor:
    """A model with parameters as an estimator: `fit`, `predict` and `score`, for pipelines and grid searches.

    `model(p, X)` returns the predictions ``(samples,)`` for the parameters p, in the form of `start` (a tensor or a
    dict of tensors), and the inputs X, a float64 tensor of the shape that was given. `bounds`, `loss`, `loss_scale` and
    `method` are those of `least_squares`. After `fit`, `solution_` is its `LeastSquaresSolution`, `parameters_` the x
    of that, and `n_features_in_` the number of columns of X.

    The constructor keeps its arguments as they are, so that `sklearn.base.clone` works; `set_params` takes the same.

    Example:
        >>> import numpy as np, torch
        >>> from frechet import LeastSquaresRegressor
        >>> X = np.linspace(0, 3, 20)[:, None]
        >>> curve = LeastSquaresRegressor(
        ...     lambda p, X: p[0] * torch.exp(-p[1] * X[:, 0]), torch.tensor([1.0, 0.1], dtype=torch.float64)
        ... )
        >>> curve.fit(X, 3 * np.exp(-0.5 * X[:, 0])).parameters_.round(decimals=9)
        tensor([3.0000, 0.5000], dtype=torch.float64)
        >>> round(curve.score(X, 3 * np.exp(-0.5 * X[:, 0])), 9)
        1.0
    """

    _estimator_type = "regressor"

    def __init__(
        self,
        model: Callable[..., Tensor],
        start: Parameters,
        *,
        bounds: tuple[Bound, Bound] | None = None,
        loss: Loss = "squared",
        loss_scale: float = 1.0,
        method: Method = "auto",
    ) -> None:
        self.model, self.start, self.bounds = model, start, bounds
        self.loss: Loss = loss
        self.method: Method = method
        self.loss_scale = loss_scale

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor by name; `deep` is there for scikit-learn."""
        return {name: getattr(self, name) for name in NAMES}

    def set_params(
        self,
        *,
        model: Callable[..., Tensor] | None = None,
        start: Parameters | None = None,
        bounds: tuple[Bound, Bound] | str | None = "as it is",
        loss: Loss | None = None,
        loss_scale: float | None = None,
        method: Method | None = None,
    ) -> LeastSquaresRegressor:
        """This estimator with the given arguments changed; what is left out stays (bounds may be set to None)."""
        self.model = self.model if model is None else model
        self.start = self.start if start is None else start
        self.bounds = self.bounds if isinstance(bounds, str) else bounds
        self.loss = self.loss if loss is None else loss
        self.loss_scale = self.loss_scale if loss_scale is None else loss_scale
        self.method = self.method if method is None else method
        return self

    def fit(self, X: object, y: object, sample_weight: object = None) -> LeastSquaresRegressor:
        """This estimator, fitted; raises `NotConverged` where least squares does not converge.

        `sample_weight` ``(samples,)`` multiplies the squares of the residuals.
        """
        inputs, targets = _tensor("fit", "X", X), _tensor("fit", "y", y)
        if targets.ndim != 1 or len(inputs) != len(targets):
            raise ValueError(
                f"LeastSquaresRegressor.fit: y must have shape ({len(inputs)},) like the rows of X, got "
                f"{tuple(targets.shape)}"
            )
        weights = torch.ones_like(targets) if sample_weight is None else _tensor("fit", "sample_weight", sample_weight)
        if weights.shape != targets.shape or bool((weights < 0).any()):
            raise ValueError(
                f"LeastSquaresRegressor.fit: sample_weight must be {len(targets)} numbers >= 0, got shape "
                f"{tuple(weights.shape)}"
            )
        root = weights.sqrt()

        def residual(p: Parameters) -> Tensor:
            predictions = self.model(p, inputs)
            if predictions.shape != targets.shape:
                raise ValueError(
                    f"LeastSquaresRegressor.fit: model must return shape {tuple(targets.shape)}, one number per row of "
                    f"X, got {tuple(predictions.shape)}"
                )
            return root * (predictions - targets)

        solution = least_squares(
            residual, self.start, bounds=self.bounds, loss=self.loss, loss_scale=self.loss_scale, method=self.method
        ).checked()
        self.solution_, self.parameters_ = solution, solution.x
        self.n_features_in_ = inputs.shape[1] if inputs.ndim > 1 else 1
        return self

    def predict(self, X: object, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The predictions ``(samples,)``, and with `return_std` also their standard errors ``(samples,)``.

        The errors are those of the curve, not of a new observation: sqrt(diag(J C J')) for the covariance C of the
        parameters and J the derivative of the model. They are infinite where the data left a parameter open.
        """
        solution, inputs = self._fitted(), _tensor("predict", "X", X)
        with torch.no_grad():
            predictions = self.model(solution.x, inputs).numpy()
        if not return_std:
            return predictions
        if solution.covariance is None or solution.null_directions is None:
            raise ValueError(
                "LeastSquaresRegressor.predict: return_std must be False where no degree of freedom is left, got "
                f"{len(solution.residuals)} data and {len(solution.gradient)} parameters"
            )
        J = jacobian(lambda p: self.model(p, inputs), solution.x).dense()
        variance = torch.einsum("ij,jk,ik->i", J, solution.covariance.to(J), J)
        open_ = (J @ solution.null_directions.to(J)).abs().sum(1) > 1e-8 * J.abs().sum(1)
        return predictions, torch.where(open_, torch.inf, variance.clamp(min=0).sqrt()).numpy()

    def score(self, X: object, y: object, sample_weight: object = None) -> float:
        """The coefficient of determination R^2 = 1 - sum w (y - prediction)^2 / sum w (y - mean)^2."""
        predictions, targets = self.predict(X), np.asarray(y, dtype=np.float64)
        assert isinstance(predictions, np.ndarray)
        weights = np.ones_like(targets) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        mean = np.average(targets, weights=weights)
        return 1 - float((weights * (targets - predictions) ** 2).sum() / (weights * (targets - mean) ** 2).sum())

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "solution_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import RegressorTags, Tags, TargetTags  # only scikit-learn asks

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True),
            transformer_tags=None,
            regressor_tags=RegressorTags(),
            classifier_tags=None,
        )

    def _fitted(self) -> LeastSquaresSolution:
        if not self.__sklearn_is_fitted__():
            raise ValueError("LeastSquaresRegressor: call fit(X, y) first, got an estimator that is not fitted")
        return self.solution_


def _tensor(method: str, name: str, values: object) -> Tensor:
    t = values.detach().cpu().double() if isinstance(values, Tensor) else torch.from_numpy(_array(values))
    if not bool(t.isfinite().all()):
        raise ValueError(f"LeastSquaresRegressor.{method}: {name} must be finite, got NaN or infinity")
    return t


def _array(values: object) -> np.ndarray:
    return np.array(values, dtype=np.float64)
