"""`least_squares` with the methods of scikit-learn's regressors; to fit and predict scikit-learn is not needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frechet.interop._table import ESTIMATOR, check_columns, names_of_columns, not_fitted, table, target, weights
from frechet.operators.derivatives._jacobian import jacobian
from frechet.optimize._least_squares.least_squares import Bound, Method, least_squares
from frechet.optimize._least_squares.least_squares_result import LeastSquaresSolution
from frechet.optimize._least_squares.residual import Parameters
from frechet.optimize._least_squares.robust import Loss

NAMES = ("model", "x0", "bounds", "loss", "loss_scale", "method", "absolute_sigma")
LEFT_OUT: Any = object()  # None is a value


class LeastSquaresRegressor:
    """A model with parameters as an estimator: `fit`, `predict` and `score`, for pipelines and grid searches.

    `model(p, X)` returns the predictions ``(samples,)`` for the parameters p, in the form of `x0`, and the inputs X.
    `x0` is a tensor or an array, or a dict of these. p and X are float64 tensors, X of the shape that was given.
    `bounds`, `loss`, `loss_scale`, `method` and `absolute_sigma` are those of `least_squares`. After `fit`, `solution_`
    is its `LeastSquaresSolution`, `parameters_` the x of that, `n_features_in_` the number of columns of X, and
    `feature_names_in_` their names if X was a data frame.

    The constructor keeps its arguments as they are, so that `sklearn.base.clone` works; `set_params` takes the same.
    Give `x0` as an array where estimators are compared by joblib's hash, as scikit-learn's `check_estimator` does:
    the hash of a tensor depends on its address.

    Example:
        >>> import numpy as np, torch
        >>> from frechet.interop import LeastSquaresRegressor
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
        x0: Parameters | np.ndarray | Mapping[str, np.ndarray | float],
        *,
        bounds: tuple[Bound, Bound] | None = None,
        loss: Loss = "squared",
        loss_scale: float = 1.0,
        method: Method = "auto",
        absolute_sigma: bool = False,
    ) -> None:
        self.model, self.x0, self.bounds = model, x0, bounds
        self.loss: Loss = loss
        self.method: Method = method
        self.loss_scale = loss_scale
        self.absolute_sigma = absolute_sigma

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor by name; `deep` is there for scikit-learn."""
        return {name: getattr(self, name) for name in NAMES}

    def set_params(
        self,
        *,
        model: Callable[..., Tensor] = LEFT_OUT,
        x0: Parameters | np.ndarray | Mapping[str, np.ndarray | float] = LEFT_OUT,
        bounds: tuple[Bound, Bound] | None = LEFT_OUT,
        loss: Loss = LEFT_OUT,
        loss_scale: float = LEFT_OUT,
        method: Method = LEFT_OUT,
        absolute_sigma: bool = LEFT_OUT,
    ) -> LeastSquaresRegressor:
        """This estimator with the given arguments changed; what is left out stays. `fit` checks them."""
        given = (model, x0, bounds, loss, loss_scale, method, absolute_sigma)
        for name, value in zip(NAMES, given, strict=True):
            if value is not LEFT_OUT:
                setattr(self, name, value)
        return self

    def fit(self, X: object, y: object, sample_weight: object = None) -> LeastSquaresRegressor:
        """This estimator, fitted; raises `NotConverged` where least squares does not converge.

        `sample_weight` ``(samples,)`` multiplies the squares of the residuals. Weights are inverse variances, up to a
        factor that is estimated unless `absolute_sigma`. A sample of weight zero does not count.
        """
        inputs = table("fit", X)
        targets = target("fit", y, len(inputs))
        root = weights("fit", sample_weight, len(inputs)).sqrt()

        def residual(p: Parameters) -> Tensor:
            predictions = self.model(p, inputs)
            if predictions.shape != targets.shape:
                raise ValueError(
                    f"LeastSquaresRegressor.fit: model must return shape {tuple(targets.shape)}, one number per row of "
                    f"X, got {tuple(predictions.shape)}"
                )
            return root * (predictions - targets)

        solution = least_squares(
            residual, _tensors(self.x0), bounds=self.bounds, loss=self.loss, loss_scale=self.loss_scale,
            method=self.method, absolute_sigma=self.absolute_sigma,
        ).checked()  # fmt: skip
        self.solution_, self.parameters_ = solution, solution.x
        self.n_features_in_ = inputs.shape[1]
        names = names_of_columns(X)
        if names is not None:
            self.feature_names_in_ = names
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        return self

    def predict(self, X: object, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The predictions ``(samples,)``, and with `return_std` also their standard errors ``(samples,)``.

        The errors are those of the curve, not of a new observation: sqrt(diag(J C J')) for the covariance C of the
        parameters and J the derivative of the model. They are infinite where the data left a parameter open.
        """
        solution, inputs = self._fitted(), table("predict", X)
        check_columns(X, inputs.shape[1], getattr(self, "feature_names_in_", None), self.n_features_in_)
        with torch.no_grad():
            predictions = self.model(solution.x, inputs).numpy()
        if not return_std:
            return predictions
        if solution.covariance is None or solution.null_directions is None:
            if solution.rank is None:
                raise ValueError(
                    "LeastSquaresRegressor.predict: return_std must be False where the Jacobian is not formed, got "
                    f"{len(solution.gradient)} parameters; least_squares names its limits"
                )
            raise ValueError(
                "LeastSquaresRegressor.predict: return_std must be False where no degree of freedom is left, got "
                f"{solution.observations} data and {len(solution.gradient)} parameters"
            )
        J = jacobian(lambda p: self.model(p, inputs), solution.x).dense()
        variance = torch.einsum("ij,jk,ik->i", J, solution.covariance.to(J), J)
        open_ = (J @ solution.null_directions.to(J)).abs().sum(1) > 1e-8 * J.abs().sum(1)
        return predictions, torch.where(open_, torch.inf, variance.clamp(min=0).sqrt()).numpy()

    def score(self, X: object, y: object, sample_weight: object = None) -> float:
        """The coefficient of determination R^2 = 1 - sum w (y - prediction)^2 / sum w (y - mean)^2."""
        predictions = self.predict(X)
        assert isinstance(predictions, np.ndarray)
        targets = target("score", y, len(predictions)).numpy()
        w = weights("score", sample_weight, len(predictions)).numpy()
        left = float((w * (targets - predictions) ** 2).sum())
        spread = float((w * (targets - np.average(targets, weights=w)) ** 2).sum())
        if spread == 0:  # as scikit-learn has it
            return 1.0 if left == 0 else 0.0
        return 1 - left / spread

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "solution_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import RegressorTags, Tags, TargetTags  # only scikit-learn asks

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True),
            transformer_tags=None,
            regressor_tags=RegressorTags(poor_score=True),  # what a model can fit is up to the caller
            classifier_tags=None,
        )

    def _fitted(self) -> LeastSquaresSolution:
        if not self.__sklearn_is_fitted__():
            raise not_fitted()
        return self.solution_


def _tensors(start: object, where: str = "") -> Any:
    """The start in float64, with tensors in the place of arrays and numbers."""
    if isinstance(start, Mapping) and not where:
        return {name: _tensors(block, f" in block '{name}'") for name, block in start.items()}
    if isinstance(start, Tensor) and not start.is_complex():
        return start.detach().cpu().double()
    array = np.asarray(start) if not isinstance(start, Tensor) else np.zeros(0, dtype=complex)
    if array.dtype.kind not in "fiub":
        got = array.dtype if isinstance(start, np.ndarray | list) else getattr(start, "dtype", type(start).__name__)
        raise TypeError(
            f"{ESTIMATOR}.fit: x0 must be real numbers, in a tensor, an array or a dict of these, got {got}{where}"
        )
    return torch.from_numpy(np.array(array, dtype=np.float64))
