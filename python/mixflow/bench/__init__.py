"""The benchmark, ``mixflow bench``: it checks results, then times mixflow beside other code in one run.

Three words name everything here. A *case* is a named call of mixflow on given inputs. A *baseline* is what a case is
compared with: plain PyTorch, another package, a part of the work, or a limit of the machine. A *group* is the list of
cases that one table shows.
"""
