"""What training survives: faults that are brought about on purpose, and counted.

python -m bench.faults                                          all of them, 100 kills
python -m bench.faults --kills 10 --flips 2                     a first look
python -m bench.faults --write docs/reliability.md --plot docs/images/reliability.png

Each module holds one kind of fault and gives lines of a table: how often it was tried, and how
often what is promised came true. The exit code is 1 if that is not every time.
"""
