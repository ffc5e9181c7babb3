"""The microbenchmark: checks results, then times mixflow and its rivals in one run (``mixflow bench``, ``make bench``)."""
