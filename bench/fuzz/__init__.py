"""Hostile inputs: mutated files and options, against all that reads what a user gives.

python -m bench.fuzz                                  100,000 cases here, 200 of the real commands
python -m bench.fuzz --cases 5000 --commands 0        a first look
python -m bench.fuzz --only 12345                     one case again, with its traceback
python -m bench.fuzz --only command-17                one case of the commands again

Each case begins with something valid, made here, and breaks it. The program may refuse it, with a
ValueError or an OSError that is one line to the user, or take it and give what is promised. All
else is a finding: another exception, seconds of time, memory out of proportion, a file that was
touched. The exit code is 1 if there is one.

A case is made from the seed and its number alone.
"""
