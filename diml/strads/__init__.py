"""Scheduled model-parallel training: programs, policies, and the Lasso as the first of them.

diml.strads.run(job, program, policy="working-set")
diml.strads.Lasso(alpha=0.1).fit(X, y)
"""

from __future__ import annotations

from diml.strads.lasso import solve_lasso
from diml.strads.lasso_cv import LassoCV
from diml.strads.lasso_models import ElasticNet, Lasso, SparseLogistic
from diml.strads.policy import POLICIES, Policy, policy_by_name
from diml.strads.program import Alone, Program, run

__all__ = [
    "POLICIES",
    "Alone",
    "ElasticNet",
    "Lasso",
    "LassoCV",
    "Policy",
    "Program",
    "SparseLogistic",
    "policy_by_name",
    "run",
    "solve_lasso",
]
