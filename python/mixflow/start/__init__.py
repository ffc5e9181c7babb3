"""Where parameters start: plain estimators, computed from rows without gradients and without any transform."""
