"""The commands behind `train.py` and `sample.py`."""
