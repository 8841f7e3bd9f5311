import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.base import clone, is_regressor
from sklearn.exceptions import DataConversionWarning, NotFittedError
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import check_estimator

from frechet.errors import NotConverged
from frechet.interop._regressor import LeastSquaresRegressor
from spectra import F64

X = np.linspace(0, 3, 30)[:, None]
START = torch.tensor([1.0, 0.1], dtype=F64)


def decay(p, X):
    return p[0] * torch.exp(-p[1] * X[:, 0])


def data(seed, noise=0.05):
    return 3 * np.exp(-0.5 * X[:, 0]) + noise * np.random.default_rng(seed).standard_normal(len(X))


def test_fit_predict_score():
    y = data(0)
    curve = LeastSquaresRegressor(decay, START).fit(X, y)
    assert curve.parameters_.tolist() == pytest.approx([3, 0.5], abs=0.1)
    assert curve.n_features_in_ == 1
    assert curve.predict(X[:4]).shape == (4,)
    assert curve.score(X, y) == pytest.approx(r2_score(y, curve.predict(X)))
    w = np.arange(30.0)
    assert curve.score(X, y, w) == pytest.approx(r2_score(y, curve.predict(X), sample_weight=w))


def test_weights_of_zero_and_two_are_rows_left_out_and_repeated():
    y, w = data(0), np.ones(30)
    w[3], w[5] = 0, 2
    rows = np.delete(np.r_[np.arange(30), 5], 3)
    weighted = LeastSquaresRegressor(decay, START).fit(X, y, w)
    repeated = LeastSquaresRegressor(decay, START).fit(X[rows], y[rows])
    assert torch.allclose(weighted.parameters_, repeated.parameters_, rtol=1e-9)


def test_standard_errors_cover_the_curve_as_often_as_they_say():
    at, truth = np.array([[0.2], [1.4], [4.0]]), 3 * np.exp(-0.5 * np.array([0.2, 1.4, 4.0]))
    q, inside, draws = stats.t.ppf(0.975, 28), np.zeros(3), 150
    for seed in range(draws):
        mean, error = LeastSquaresRegressor(decay, START).fit(X, data(seed)).predict(at, return_std=True)
        inside += np.abs(mean - truth) <= q * error
    assert (inside >= stats.binom.ppf(0.001 / 3, draws, 0.95)).all()
    assert (inside <= stats.binom.ppf(1 - 0.001 / 3, draws, 0.95)).all()


def test_errors_are_infinite_where_the_data_leave_a_parameter_open():
    curve = LeastSquaresRegressor(lambda p, X: p[0] * p[1] * X[:, 0] + p[2], torch.ones(3, dtype=F64))
    y = 2 * X[:, 0] + 1 + 0.01 * np.cos(7 * X[:, 0])
    assert np.isfinite(curve.fit(X, y).predict(X, return_std=True)[1]).all()  # the product is determined
    curve = LeastSquaresRegressor(lambda p, X: p[0] + p[1] * X[:, 0] * (X[:, 0] > 10), torch.ones(2, dtype=F64))
    errors = curve.fit(X, y).predict(np.array([[1.0], [11.0]]), return_std=True)[1]
    assert np.isfinite(errors[0])
    assert np.isinf(errors[1])


def test_clones_searches_and_pipelines_of_scikit_learn():
    y = data(0)
    y[4] = 30.0
    curve = LeastSquaresRegressor(decay, START, bounds=(0.0, 10.0))
    copy = clone(curve)
    assert copy.get_params()["model"] is decay
    assert torch.equal(copy.x0, START)
    assert is_regressor(curve)
    grid = {"loss": ["squared", "soft_l1"], "loss_scale": [0.1]}
    search = GridSearchCV(curve, grid, cv=3, scoring="neg_median_absolute_error")
    assert search.fit(X, y).best_params_["loss"] == "soft_l1"
    assert search.best_estimator_.parameters_.tolist() == pytest.approx([3, 0.5], abs=0.1)
    assert cross_val_score(curve, X, data(1), cv=3).shape == (3,)
    scaled = make_pipeline(MinMaxScaler((0, 3)), curve).fit(X, data(1))
    assert scaled.score(X, data(1)) > 0.95


def test_parameters_are_set_by_name_and_others_stay():
    curve = LeastSquaresRegressor(decay, START, bounds=(0.0, 10.0))
    assert curve.set_params(loss="huber", loss_scale=0.5) is curve
    assert curve.get_params()["bounds"] == (0.0, 10.0)
    assert curve.set_params(bounds=None, method="dogleg").bounds is None
    assert (curve.loss, curve.loss_scale, curve.method) == ("huber", 0.5, "dogleg")


def test_a_dict_of_parameters():
    start = {"a": START[0], "rate": START[1]}
    curve = LeastSquaresRegressor(lambda p, X: p["a"] * torch.exp(-p["rate"] * X[:, 0]), start)
    mean, error = curve.fit(X, data(0)).predict(X, return_std=True)
    assert mean.shape == error.shape == (30,)
    assert float(curve.parameters_["rate"]) == pytest.approx(0.5, abs=0.1)


def test_scikit_learn_is_not_imported():
    code = "import sys, frechet; assert not [m for m in sys.modules if m.startswith('sklearn')]"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_messages():
    curve = LeastSquaresRegressor(decay, START)
    with pytest.raises(ValueError, match=r"LeastSquaresRegressor: call fit\(X, y\) first"):
        curve.predict(X)
    with pytest.raises(ValueError, match=r"fit: y must have shape \(30,\) like the rows of X, got \(29,\)"):
        curve.fit(X, data(0)[1:])
    with pytest.raises(ValueError, match="fit: y must be finite, got NaN or infinity"):
        curve.fit(X, data(0) * np.nan)
    with pytest.raises(ValueError, match="fit: sample_weight must be 30 numbers >= 0"):
        curve.fit(X, data(0), -np.ones(30))
    with pytest.raises(ValueError, match=r"fit: model must return shape \(30,\), .* row of X, got \(30, 1\)"):
        LeastSquaresRegressor(lambda p, X: p[0] * X, START).fit(X, data(0))
    with pytest.raises(ValueError, match="predict: return_std must be False where no degree of freedom is left"):
        curve.fit(X[[0, 20]], data(0)[[0, 20]]).predict(X, return_std=True)
    with pytest.raises(NotConverged, match="least_squares"):
        LeastSquaresRegressor(lambda p, X: 0 * p[0] + X[:, 0], START).fit(X, data(0))


# --- as scikit-learn wants it -----------------------------------------------------------------------------------------


def ends(p, X):
    return X[:, 0] * p[0] + X[:, -1] * p[1]


def slopes(p, X):
    return X @ p[: X.shape[1]]


def affine(p, X):
    return X @ p["slopes"][: X.shape[1]] + p["at zero"]


STARTS = {ends: [0.0, 0.0], slopes: np.zeros(64, dtype=np.float32), affine: {"slopes": np.zeros(64), "at zero": 0.0}}


@pytest.mark.parametrize("model", STARTS, ids=lambda model: model.__name__)
def test_the_checks_of_scikit_learn_pass_whole(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(LeastSquaresRegressor(model, STARTS[model]), on_fail=None)
    assert not {check["check_name"]: check["exception"] for check in found if check["status"] == "failed"}
    skipped = {check["check_name"] for check in found if check["status"] == "skipped"}
    assert skipped <= {"check_array_api_input", "check_dataframe_column_names_consistency"}
    assert len(found) > 50


RAW = np.random.default_rng(0).normal(size=(20, 2))
Y = RAW @ [1.0, 2.0]
FITTED = LeastSquaresRegressor(ends, np.zeros(2)).fit(RAW, Y)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["array", "tensor"])
@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda e, k: e.fit(k(RAW), k(Y + 5j)), ValueError, "Complex data not supported: .*fit: y must be real"),
        (lambda e, k: e.fit(k(RAW * (1 + 1j)), k(Y)), ValueError, "Complex data not supported: .*fit: X must be real"),
        (lambda e, k: e.fit(k(RAW), k(Y), k(Y + 1j)), ValueError, "Complex data .*fit: sample_weight must be real"),
        (lambda e, k: FITTED.predict(k(RAW * 1j)), ValueError, "Complex data not supported: .*predict: X must be real"),
        (lambda e, k: FITTED.score(k(RAW), k(Y * 1j)), ValueError, "Complex data .*score: y must be real"),
        (lambda e, k: e.fit(k(RAW), k(Y), k(0 * Y)), ValueError, "sample_weight must have a number > 0, got zeros"),
        (lambda e, k: FITTED.score(k(RAW), k(Y), k(0 * Y)), ValueError, "score: sample_weight must have a number > 0"),
        (lambda e, k: FITTED.predict(k(np.ones((3, 5)))), ValueError, "X has 5 features, .* is expecting 2 features"),
        (lambda e, k: FITTED.score(k(np.ones((3, 5))), k(Y)), ValueError, "X has 5 features, .* expecting 2 features"),
        (lambda e, k: e.fit(k(RAW[:0]), k(Y[:0])), ValueError, r"fit: X must have rows, got 0 sample\(s\)"),
        (lambda e, k: e.fit(k(RAW[:, :0]), k(Y)), ValueError, r"fit: X must have columns, got 0 feature\(s\)"),
        (lambda e, k: e.fit(k(RAW[:, 0]), k(Y)), ValueError, r"fit: X must have rows and columns, got shape \(20,\)"),
        (lambda e, k: FITTED.predict(k(RAW[0])), ValueError, "predict: X must have rows and columns, .* Reshape your"),
        (lambda e, k: e.fit(k(RAW), None), ValueError, "requires y to be passed, but the target y is None"),
        (lambda e, k: e.fit(k(RAW), k(RAW)), ValueError, r"y must have shape \(20,\) .* got \(20, 2\)"),
        (lambda e, k: e.fit(torch.eye(20).to_sparse(), k(Y)), TypeError, "fit: X must be dense, got a sparse matrix"),
        (lambda e, k: e.predict(k(RAW)), NotFittedError, "call fit"),
        (lambda e, k: FITTED.predict(k(RAW * np.inf)), ValueError, "predict: X must be finite, got NaN or infinity"),
    ],
)  # fmt: skip
def test_data_that_are_no_table_of_real_numbers_are_refused(kind, call, error, sentence):
    with pytest.raises(error, match=sentence):
        call(LeastSquaresRegressor(ends, np.zeros(2)), kind)


def test_a_column_of_targets_is_taken_with_a_warning():
    with pytest.warns(DataConversionWarning, match="A column-vector y was passed when a 1d array was expected"):
        found = clone(FITTED).fit(RAW, Y[:, None])
    assert torch.equal(found.parameters_, FITTED.parameters_)


def test_columns_of_data_frames_are_known_by_name():
    frame = pytest.importorskip("pandas").DataFrame(RAW, columns=["left", "right"])
    named = clone(FITTED).fit(frame, Y)
    assert list(named.feature_names_in_) == ["left", "right"]
    assert torch.equal(named.parameters_, FITTED.parameters_)
    assert np.array_equal(named.predict(frame), FITTED.predict(RAW))
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        named.predict(RAW)
    with pytest.warns(UserWarning, match="was fitted without feature names"):
        FITTED.predict(frame)
    with pytest.raises(ValueError, match="must be in the same order as they were in fit"):
        named.predict(frame[["right", "left"]])
    with pytest.raises(ValueError, match=r"unseen at fit time:\n- up\n(.|\n)*yet now missing:\n- right"):
        named.predict(frame.rename(columns={"right": "up"}))
    assert not hasattr(named.fit(RAW, Y), "feature_names_in_")


@pytest.mark.parametrize("start", [[1.0, 0.1], np.array([1.0, 0.1]), torch.tensor([1.0, 0.1])], ids=type)
def test_a_start_of_any_kind_is_fitted_in_double_precision_and_not_changed(start):
    curve = LeastSquaresRegressor(decay, start)
    found = curve.fit(X, data(0)).parameters_
    assert found.dtype == F64
    assert torch.allclose(found, LeastSquaresRegressor(decay, START).fit(X, data(0)).parameters_, rtol=1e-9)
    assert curve.x0 is start
    assert torch.allclose(torch.as_tensor(start).double(), START, rtol=1e-7)


def test_weights_of_zero_leave_the_errors_of_the_other_rows():
    y, w = data(0), np.ones(30)
    w[:7] = 0
    at = X[:4]
    weighted = LeastSquaresRegressor(decay, START).fit(X, y, w).predict(at, return_std=True)[1]
    assert weighted == pytest.approx(
        LeastSquaresRegressor(decay, START).fit(X[7:], y[7:]).predict(at, return_std=True)[1]
    )


def test_absolute_weights_are_inverse_variances():
    known = LeastSquaresRegressor(decay, START, absolute_sigma=True).fit(X, data(0), np.full(30, 0.05**-2))
    J = torch.func.jacrev(lambda p: decay(p, torch.from_numpy(X)))(known.parameters_)
    assert torch.allclose(known.solution_.covariance, 0.05**2 * torch.linalg.inv(J.T @ J), rtol=1e-6)


def test_the_score_of_constant_targets_is_that_of_scikit_learn():
    flat = LeastSquaresRegressor(lambda p, X: p[0] + 0 * X[:, 0], np.zeros(1)).fit(X, np.full(30, 2.0))
    for y in (np.full(30, 2.0), np.full(30, 3.0)):
        assert flat.score(X, y) == r2_score(y, flat.predict(X))


@pytest.mark.parametrize(
    "start", [[1, 1], np.array([1, 1]), torch.tensor([1, 1]), START.float(), START.bfloat16(), (1.0, 0.5), [True, 1]]
)
def test_any_real_numbers_are_a_start(start):
    p = LeastSquaresRegressor(decay, start).fit(X, data(0, 0.0)).parameters_
    assert p.dtype == F64
    assert p.tolist() == pytest.approx([3, 0.5])
    named = LeastSquaresRegressor(lambda p, X: decay((p["a"], p["b"]), X), {"a": 1, "b": np.float32(0.1)})
    assert float(named.fit(X, data(0, 0.0)).parameters_["a"]) == pytest.approx(3)


@pytest.mark.parametrize(
    ("start", "got"),
    [
        (None, "NoneType"), ("ab", "str"), (["a", "b"], "<U1"), (1j * np.ones(2), "complex128"),
        (torch.ones(2) * 1j, r"torch\.complex64"), ({"a": None}, "NoneType in block 'a'"),
    ],
)  # fmt: skip
def test_a_start_that_is_no_number_is_refused(start, got):
    sentence = (
        f"LeastSquaresRegressor.fit: x0 must be real numbers, in a tensor, an array or a dict of these, got {got}"
    )
    with pytest.raises(TypeError, match=sentence):
        LeastSquaresRegressor(decay, start).fit(X, data(0))
