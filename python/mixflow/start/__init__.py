"""Where parameters start: estimators that compute numbers from rows, without gradients and without any transform.

``robust`` is location and spread, ``gaussian`` one Gaussian, ``mixtures`` the mixture of each column by itself;
``clusters``, ``expectation`` and ``gaussian_mixture`` lead to mixtures with full covariances, and ``directions`` to
rotations. :mod:`mixflow.flows.initialize` puts them together for a whole flow.
"""
