"""The microbenchmark, ``mixflow bench``: checks results, then times mixflow and its rivals in one run."""
