"""Fitting a flow by maximum likelihood: where rows come from, in what steps a flow is trained, and its record."""
