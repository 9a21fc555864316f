"""Benchmarks of the library's speed and of its trained models, against peers and published figures.

`python -m bench --help`, run from the root of the repository, lists the benchmarks, each in a file
of its name. `pip install '.[peers]'` installs the peers; one that is missing is reported, and one
that computes something else is reported and not timed (the exit code is then 1). Ours and each peer
run in their own processes, timed in turns. Every implementation uses all cores, so leave the
machine idle meanwhile.

To add a benchmark, add a file with `Options` and a `main` of them, and a line in `bench.__main__`.
With peers on the same work, it is a list of `contest.Work`. `command` has the shared options,
`report` the rows, `shapes` the systems.
"""
