"""Linear probe (Radford et al. 2021, arXiv 2103.00020, section 3.2 and appendix A.3).

Multinomial logistic regression on the image features, L2 strength chosen on validation: the strengths 1e-6, 1e-4, ...,
1e6 first, then the interval around the best one halved until there are eight steps a decade. scikit-learn's L-BFGS with
at most 1000 iterations, as in the paper. C classes, E feature size, M training images.
"""

import warnings

import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from vlmx.errors import UserError
from vlmx.method import Method, image_features


def make(max_iter=1000):
    """Logistic regression on frozen features. Args: max_iter: of L-BFGS, per fit."""

    def setup(model, task):
        return {"classes": jnp.arange(len(task.classnames))}

    def init(key, model, consts, support):
        C, E = len(consts["classes"]), support["features"].shape[-1]
        return {"train": {"W": jnp.zeros((E, C)), "b": jnp.zeros(C)}, "fixed": dict(support)}

    def apply(v, model, consts, batch, rng=None, train=False):
        return {"logits": image_features(model, batch) @ v["train"]["W"] + v["train"]["b"]}

    def finalize(v, model, consts, val):
        if not len(val["label"]):
            raise UserError("linear_probe chooses its strength on validation images, and this data set has none.")
        x, y = np.asarray(v["fixed"]["features"], np.float64), np.asarray(v["fixed"]["label"])
        val_x, val_y = np.asarray(val["features"], np.float64), np.asarray(val["label"])

        def fit(exponent):
            clf = LogisticRegression(C=10.0**exponent, max_iter=max_iter)
            with warnings.catch_warnings():  # the paper stops at 1000 iterations whether or not it has converged
                warnings.simplefilter("ignore", ConvergenceWarning)
                clf.fit(x, y)
            return clf

        with threadpool_limits(1):  # matrices are small: threads would mostly wait for each other (25 times as long)
            clf, exponent = search(fit, lambda clf: clf.score(val_x, val_y))
        W, b = np.zeros(v["train"]["W"].shape, np.float32), np.full(v["train"]["b"].shape, -1e9, np.float32)
        coef, intercept = clf.coef_, clf.intercept_
        if len(clf.classes_) == 2:  # scikit-learn keeps one row for two classes
            coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        W[:, clf.classes_], b[clf.classes_] = coef.T, intercept
        return {"train": {"W": jnp.asarray(W), "b": jnp.asarray(b)}, "fixed": {"log10_C": jnp.float32(exponent)}}

    return Method(init=init, apply=apply, setup=setup, finalize=finalize, carries=False)


def search(fit, score):
    """The best model over exponents of C: -6, -4, ..., 6, then halved around the peak down to 1/8.

    Args: fit: exponent -> model. score: model -> number, higher is better; of equals the smallest exponent, which is
    the strongest regularisation. Returns (model, exponent).
    """
    tried = {}

    def best(exponents):
        for e in exponents:
            if e not in tried:
                model = fit(e)
                tried[e] = (score(model), -e, model)
        _, minus, model = max(tried.values(), key=lambda t: t[:2])
        return -minus, model

    peak, model = best(range(-6, 7, 2))
    step = 1.0
    while step >= 1 / 8:
        peak, model = best(e for e in (peak - step, peak + step) if -6 <= e <= 6)
        step /= 2
    return model, peak
