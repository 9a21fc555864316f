"""How fast the library is, and how good what it trains, beside its peers and published figures.

From the root of the repository, a whole training step:

    python -m bench.train_step                                  every system, float32
    python -m bench.train_step --systems anna lyrics --dtype bfloat16 --json rows.json
    python -m bench.train_step --quick                          a first look: lyrics, few rounds
    python -m bench.train_step --peers pytorch --rounds 10

A bare LSTM or GRU layer, forward and backward; shapes are T,B,D,H:

    python -m bench.layer --plot times.png
    python -m bench.layer --cells gru --shapes 20,512,64,64 --dtype bfloat16
    python -m bench.layer --quick

Peak memory and the first step, each implementation in a process of its own:

    python -m bench.memory --json rows.json --plot peaks.png
    python -m bench.compile --systems anna --times 10 100 1000 20000

How our step grows with sequence length, batch size, hidden size and vocabulary:

    python -m bench.growth --json rows.json --plot docs/images/growth.png

What the loop of `train.py` costs, beside its bare training step on the same batches:

    python -m bench.rate --system lyrics --steps 200 --json row.json

How fast the systems write, how fast prompts are absorbed, and what filters cost:

    python -m bench.sample                                      anna and shakespeare, float32
    python -m bench.sample --batch-sizes 1 128 --dtype bfloat16 --json rows.json --plot rates.png
    python -m bench.sample --quick

The peers come with `pip install '.[peers]'`; one that is not installed is named as missing, and one
that does other work than ours is named and not timed (the exit code is then 1). Leave the machine
alone meanwhile: every implementation uses all of its cores.

A new bench takes `measure.interleave` for the timing, `environment.environment` for what it ran on,
`report` for the rows, the systems' shapes from `shapes`, and the limit from `products`; one with
peers that do the same work is a `contest.Contest`.

What finished runs of `train.py` reached, beside published figures and n-grams on the same split:

    python -m bench.systems RUN [RUN ...] --markdown table.md --json lines.json

What training survives, and whether memory or rate drift with time:

    python -m bench.faults
    python -m bench.endurance --minutes 20
"""
