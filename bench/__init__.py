"""How fast the library is, and how good what it trains, beside its peers and published figures.

`python -m bench --help` names the benches, of which each has a file of its name; from the root of
the repository. The peers come with `pip install '.[peers]'`; one that is not installed is named as
missing, and one that does other work than ours is named and not timed (the exit code is then 1).
Ours and each peer run in processes of their own and are timed in turns. Leave the machine alone
meanwhile: every implementation uses all of its cores.

A new bench is a file with a `main` and a line in `bench.__main__`. With peers that do the same work
it is a list of `contest.Work`; `contest.Contest` and `contest.time_in_turns` are what that is made
of, `command` has the options and keeps the rows of `report`, `shapes` has the systems.
"""
