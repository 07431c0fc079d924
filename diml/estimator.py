"""What all estimators share: their parameters, in scikit-learn's manner, and what is not fitted.

Owns no model. scikit-learn itself is not needed: where it is installed its exception is used.
"""

from __future__ import annotations

import inspect
from typing import Any


class Estimator:
    """Base of all estimators: parameters, which are the arguments of `__init__`."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name."""
        names = [name for name in inspect.signature(type(self)).parameters if name != "self"]
        return {name: getattr(self, name) for name in names}

    def set_params(self, **params: Any) -> Any:
        """Set parameters by name. Raises ValueError for one that does not exist."""
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not defaults[name].default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


def not_fitted(estimator: Estimator) -> Exception:
    """The error for what needs a fit first: scikit-learn's, which is a ValueError, or that."""
    text = f"This {type(estimator).__name__} is not fitted yet: call fit first."
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return ValueError(text)
    error: Exception = NotFittedError(text)
    return error
