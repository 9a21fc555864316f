"""What each command but `train` can be given: its flags, their defaults, and what they may be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lstm_jax.settings import Bounds, Checked, Count, CountOrZero, PositiveOrZero

Step = CountOrZero | Literal["newest", "best"]
_MANY = Annotated[int, Bounds(1, 2**16)]
_MOST_AT_ONCE = 2**28

SAMPLE_HELP = """\
usage: {prog} RUN_DIR [--FLAG VALUE] ...

Writes text with a model that train.py made, to standard output.

common flags:
  --prompt TEXT      what the text begins with; by default one of the run's own
  --template TEXT    in place of a prompt: a text whose every * is to be filled
  --prompts PATH     a file of prompts, one a line
  --length N         tokens to add to a prompt, at most; by default 500
  --temperature X    below 1 more likely tokens, above 1 more surprising ones
  --top-n N          take only the N most likely tokens
  --stop TEXT ...    texts that end what is written
  --batch N          texts to write of each prompt
  --seed N           random seed
  --stream           show the text as it is made

{prog} --help-all prints all flags: filters, beams, scores, JSON lines."""


@dataclass(frozen=True)
class SampleCommand(Checked):
    """Write text with a trained model; standard output carries the texts alone."""

    run_dir: Annotated[Path, tyro.conf.Positional]  # a folder that train.py made.
    #: what the text begins with; by default the run's first sample prompt.
    prompt: str | None = None
    #: in place of a prompt: a text whose characters stand where they are, and each * of which is
    #: filled (words, each * one of them, for a model of words).
    template: str | None = None
    prompts: Path | None = None  # a UTF-8 file of prompts, one a line.
    templates: Path | None = None  # a UTF-8 file of templates, one a line.
    #: a UTF-8 file of texts, one a line: write nothing, but print of each its log-likelihood in
    #: nats, perplexity, number of tokens that were predicted, and the text; each is read as what
    #: goes on from the prompt, if there is one.
    score: Path | None = None
    length: Annotated[int, Bounds(1, 10_000_000)] = 500  # tokens to add to a prompt, at most.
    #: a model of poems has learnt where one ends: what goes on from a prompt ends where the "model"
    #: ends it, or goes on all its "length". A template is always filled.
    ending: Literal["model", "length"] = "model"
    stop: tuple[str, ...] = ()  # texts that end what is written; they are left out.
    top_n: CountOrZero = 0  # take only the most likely n tokens; 0 for all.
    #: take only the most likely tokens that have this share of probability together.
    top_p: float = 1.0
    min_p: float = 0.0  # take only tokens at least so likely, compared with the most likely one.
    #: above 1 makes tokens less likely that the text has already.
    repetition_penalty: Annotated[float, Bounds(above=0)] = 1.0
    forbid: str = ""  # characters (words, for a model of words) that are never written.
    temperature: PositiveOrZero = 1.0  # divides the logits; 0 takes the most likely token.
    greedy: bool = False  # always take the most likely token, as temperature 0 does.
    #: whether the unknown token of a model of words is never taken, or ends the text.
    unknown: Literal["never", "ends"] = "never"
    #: a character of the template that the vocabulary lacks is shown as it is, and the model reads
    #: it as unknown; else it is an error.
    feed_unknown: bool = False
    line_length: Count | None = None  # begin a new line after so many tokens.
    stream: bool = False  # show the text as it is made.
    #: of so many texts write the one that the model finds most likely, given characters that come
    #: later included.
    best_of: _MANY | None = None
    #: in place of drawing, search for the most likely texts with so many hypotheses, and write the
    #: best ones, as many as `batch` says.
    beams: _MANY | None = None
    #: exponent of the length that a search divides log-probabilities by.
    length_penalty: Annotated[float, Bounds(-1e6, 1e6)] = 1.0
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0  # of the random draws.
    #: texts to write of each prompt or template, each with draws of its own.
    batch: Annotated[int, Bounds(1, 1_000_000)] = 1
    side_by_side: _MANY = 64  # how many texts are written at once.
    #: dtype of the weights; bfloat16 takes half the memory, and of many texts less time.
    weights: Literal["float32", "bfloat16"] | None = None
    jsonl: bool = False  # write a JSON object a line, with tokens and log-probabilities.
    #: which checkpoint: a step, the newest good one, or the best on held-out data.
    step: Step = "newest"
    #: let a bidirectional model write, which it cannot do well: it saw the future.
    force: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_once = min(self.batch, self.side_by_side) * self.length
        at_once *= max(self.best_of or 1, self.beams or 1)
        if at_once > _MOST_AT_ONCE:
            raise ValueError(
                f"length is {self.length}, which makes {at_once:,} tokens of texts side by side; "
                f"lower length, side_by_side, best_of or beams: at most {_MOST_AT_ONCE:,} fit"
            )
        if self.prompt == "":
            raise ValueError("the prompt is empty; give at least one character")
        if "" in self.stop:
            raise ValueError("a stop text is empty; give at least one character")
        for names in (
            ("prompt", "template", "prompts", "templates"),
            ("template", "prompts", "templates", "score"),
            ("stream", "best_of", "beams", "score"),
            ("stream", "jsonl"),
        ):
            given = [name for name in names if getattr(self, name) not in (None, False)]
            if len(given) > 1:
                raise ValueError(f"both {given[0]} and {given[1]} are given; choose one of them")
        if self.beams is not None and self.batch > self.beams:
            most = f"{self.beams} beams find no more texts than that"
            raise ValueError(f"batch is {self.batch}, but {most}; raise beams")


@dataclass(frozen=True)
class ClassifyCommand(Checked):
    """Label texts, one a line, with a trained classifier.

    For each line of the file, or of standard input, prints the label, the probability that the
    text is positive, and the text, with tabs between them: a row a line, an empty line's too. LF
    and CRLF end a line, and no other character does.
    """

    #: a folder that train.py made of the reviews preset.
    run_dir: Annotated[Path, tyro.conf.Positional]
    #: UTF-8 text, one review a line; standard input if there is none.
    file: Annotated[Path | None, tyro.conf.Positional] = None
    batch_size: Count = 128  # texts that are read together.
    #: which checkpoint: a step, the newest good one, or the best on held-out data.
    step: Step = "best"


@dataclass(frozen=True)
class ConvertCommand(Checked):
    """Write the weights of a run or a file to a safetensors file, in PyTorch's names or our own."""

    #: a folder that train.py made; or a .safetensors, .pt or .pth file in either layout.
    source: Annotated[Path, tyro.conf.Positional]
    target: Annotated[Path, tyro.conf.Positional]  # the .safetensors file to write.
    #: "pytorch": encoder.weight, rnn.*, decoder.*, or of layers alone weight_ih_l0 and so on;
    #: "plain": embedding, layers/0/w_x, output/w and so on. By default the other layout than the
    #: source's, and "pytorch" of a run.
    to: Literal["pytorch", "plain"] | None = None
    #: which checkpoint of a run: a step, the newest good one, or the best on held-out data.
    step: Step = "newest"
    #: take only the layers of a PyTorch file whose names begin so, for example "rnn.".
    prefix: str | None = None
    encoder: str = "encoder"  # what the PyTorch model calls its embedding.
    rnn: str = "rnn"  # what it calls its recurrent layers.
    decoder: str = "decoder"  # what it calls its output layer.
    #: where tokens enter one-hot, write the identity as encoder.weight.
    identity_encoder: bool = False
    overwrite: bool = False  # replace the target if it is there.


@dataclass(frozen=True)
class ExportCommand(Checked):
    """Write a run's model, weights and all, as a program that only needs jax and flatbuffers.

    Load it with jax.export.deserialize(open(TARGET, "rb").read()) and run it with .call(...).
    """

    run_dir: Annotated[Path, tyro.conf.Positional]  # a folder that train.py made.
    target: Annotated[Path, tyro.conf.Positional]  # the file to write.
    #: "step": (carry ..., token) to (carry ..., logits); "sampler": (prompt, key data, temperature,
    #: top n) to tokens; "classifier": (tokens, mask) to probability. By default the step.
    what: Literal["step", "sampler", "classifier"] = "step"
    places: Count = 256  # how many tokens a sampler writes.
    #: where it is to run; by default where this process does.
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ()
    #: which checkpoint: a step, the newest good one, or the best on held-out data. By default a
    #: classifier's best, and the newest of others.
    step: Step | None = None
    overwrite: bool = False  # replace the target if it is there.


@dataclass(frozen=True)
class PlotCommand:
    """Draw loss and accuracy of several runs, in training and held out, against the epoch."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]  # folders that train.py made.
    output: Path = Path("curves.png")  # the picture to write.

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("there is no run to draw; name one run folder or more")
