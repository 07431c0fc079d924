"""What the estimators of linear models share: checks of data, prediction, tags.

Owns scikit-learn's interface; scikit-learn itself is not needed: where it is installed its tags are
answered and its exceptions used. Must not know how a model is fitted.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from diml.errors import Misuse
from diml.estimator import Estimator, not_fitted
from diml.strads.columns import response_of

Floats = NDArray[np.float64]


class ConvergenceWarning(UserWarning):
    """The gap did not reach the tolerance."""


class LinearModel(Estimator):
    """Base of the linear models: `coef_` (p,) and `intercept_` after `fit`."""

    coef_: Any
    intercept_: Any
    n_features_in_: int

    def _decision(self, X: Any) -> Floats:
        """Xβ + b, (n,), after the checks that scikit-learn asks for."""
        if not hasattr(self, "coef_"):
            raise not_fitted(self)
        self._check_features(X)
        try:
            X = matrix(X)
        except Misuse as error:
            raise ValueError(str(error)) from None
        if X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {X.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        answer: Floats = np.asarray(X @ np.ravel(self.coef_), np.float64).reshape(-1)
        return answer + float(np.ravel(self.intercept_)[0])

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")

    def _remember_features(self, X: Any) -> None:
        columns = getattr(X, "columns", None)
        if columns is not None and all(isinstance(name, str) for name in columns):
            self.feature_names_in_ = np.asarray(columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _check_features(self, X: Any) -> None:
        known = getattr(self, "feature_names_in_", None)
        columns = getattr(X, "columns", None)
        if known is None or columns is None or list(columns) == list(known):
            return
        raise ValueError(
            "The feature names should match those that were passed during fit: "
            f"expected {list(known)}, got {list(columns)}"
        )


class Regressor(LinearModel):
    """Base of the models whose prediction is a number."""

    _estimator_type = "regressor"

    def predict(self, X: Any) -> Floats:
        """Xβ + b, (n,)."""
        return self._decision(X)

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """R² of the prediction on X and y."""
        target = np.asarray(y, np.float64)
        weight = np.ones(len(target)) if sample_weight is None else np.asarray(sample_weight)
        off = target - np.average(target, weights=weight)
        total = float(weight @ off**2)
        rest = float(weight @ (target - self.predict(X)) ** 2)
        return 1.0 - rest / total if total else float(rest == 0.0)

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True),
            transformer_tags=None,
            classifier_tags=None,
            regressor_tags=RegressorTags(),
            input_tags=InputTags(sparse=True),
        )


class Classifier(LinearModel):
    """Base of the models of two classes, `classes_`."""

    _estimator_type = "classifier"
    classes_: NDArray[Any]

    def decision_function(self, X: Any) -> Floats:
        """Xβ + b, (n,): above 0 for the second class."""
        return self._decision(X)

    def predict_proba(self, X: Any) -> Floats:
        """(n, 2) probabilities of the classes."""
        second = 1.0 / (1.0 + np.exp(-np.clip(self._decision(X), -700.0, 700.0)))
        return np.column_stack([1.0 - second, second])

    def predict(self, X: Any) -> NDArray[Any]:
        """The likelier class of each row, (n,)."""
        second = (self._decision(X) > 0.0).astype(np.int64)
        picked: NDArray[Any] = self.classes_[second]
        return picked

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """The part of rows whose class is predicted."""
        right = self.predict(X) == np.asarray(y)
        weight = np.ones(len(right)) if sample_weight is None else np.asarray(sample_weight)
        return float(np.average(right, weights=weight))

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            transformer_tags=None,
            classifier_tags=ClassifierTags(multi_class=False),
            regressor_tags=None,
            input_tags=InputTags(sparse=True),
        )


def matrix(X: Any) -> Any:
    """A design that can be used, as an array or a CSC matrix."""
    if scipy.sparse.issparse(X):
        X = X.tocsc()
    else:
        X = np.asarray(X)
        if X.dtype.kind in "OUS":
            try:
                X = X.astype(np.float64)
            except ValueError as error:
                raise Misuse(f"X must be numbers: {error}") from None
    if np.issubdtype(X.dtype, np.complexfloating):
        raise Misuse("Complex data not supported")
    if X.ndim != 2:
        raise Misuse(f"Expected 2D array, got {X.ndim}D array instead. Reshape your data.")
    if X.shape[0] == 0 or X.shape[1] == 0:
        what = "sample" if X.shape[0] == 0 else "feature"
        count = X.shape[0] if what == "sample" else X.shape[1]
        raise Misuse(
            f"Found array with {count} {what}(s) (shape={X.shape}) "
            "while a minimum of 1 is required."
        )
    values = X.data if scipy.sparse.issparse(X) else X
    if not np.isfinite(np.asarray(values, np.float64)).all():
        raise Misuse("Input X contains NaN or infinity.")
    return X


def checked_response(y: ArrayLike, rows: int) -> Floats:
    """`y` as (n,) float64. Raises Misuse where it is not one finite number for each row."""
    values = response_of(_one_dimension(y))
    if len(values) != rows:
        raise Misuse(f"X has {rows} rows but y has {len(values)} values: inconsistent")
    return values


def _one_dimension(y: ArrayLike) -> NDArray[Any]:
    if y is None:
        raise Misuse("requires y to be passed, but the target y is None")
    array = np.asarray(y)
    if np.iscomplexobj(array):
        raise Misuse("Complex data not supported")
    if array.ndim == 2 and array.shape[1] == 1:
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected.",
            _sklearn_warning("DataConversionWarning"),
            stacklevel=4,
        )
        array = array.reshape(-1)
    if array.ndim != 1:
        raise Misuse(f"y must be one-dimensional, not {array.ndim}-dimensional")
    return array


def checked_labels(y: ArrayLike, rows: int) -> tuple[NDArray[Any], Floats]:
    """(the two classes, rising; −1 for the first of them and 1 for the second, (n,)).

    Raises:
        Misuse: not one label for each row, NaN among them, or not two classes.
    """
    array = _one_dimension(y)
    if array.dtype.kind == "f":
        array_f = response_of(array)
        if len(array_f) and (array_f != np.floor(array_f)).any():
            raise Misuse("Unknown label type: continuous numbers are no classes")
    if len(array) != rows:
        raise Misuse(f"X has {rows} rows but y has {len(array)} labels: inconsistent")
    try:
        classes = np.unique(array)
    except TypeError:
        raise Misuse("labels must be of one kind, numbers or strings") from None
    if len(classes) > 2:
        raise Misuse(
            "Only binary classification is supported. The type of the target is multiclass: "
            f"{len(classes)} classes."
        )
    if len(classes) < 2:
        raise Misuse(f"two classes are needed, but y contains {len(classes)} class: {classes}")
    return classes, np.where(array == classes[1], 1.0, -1.0)


def _sklearn_warning(name: str) -> type[Warning]:
    try:
        from sklearn import exceptions
    except ImportError:
        return UserWarning
    kind: type[Warning] = getattr(exceptions, name)
    return kind
