"""Options of every command but `train`: flags, defaults and allowed values."""

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

Generates text with a model trained by train.py, and prints it to standard output.

common flags:
  --prompt TEXT      beginning of the text; by default one of the run's own prompts
  --template TEXT    instead of a prompt: a text in which each * is filled in
  --prompts PATH     file of prompts, one per line
  --length N         maximum number of tokens to add to a prompt; by default 500
  --temperature X    below 1 favours likely tokens, above 1 surprising ones
  --top-n N          sample from the N most likely tokens only
  --stop TEXT ...    texts that end generation
  --batch N          number of texts per prompt
  --seed N           random seed
  --stream           show the text while it is generated

{prog} --help-all prints all flags: filters, beams, scores, JSON lines."""


@dataclass(frozen=True)
class SampleCommand(Checked):
    """Generate text with a trained model; only the texts go to standard output."""

    run_dir: Annotated[Path, tyro.conf.Positional]  # a folder made by train.py.
    #: beginning of the text; by default the run's first sample prompt.
    prompt: str | None = None
    #: text in which each * is filled in and all else is kept, instead of a prompt (with a word
    #: model, each * is a word).
    template: str | None = None
    prompts: Path | None = None  # UTF-8 file of prompts, one per line.
    templates: Path | None = None  # UTF-8 file of templates, one per line.
    #: UTF-8 file of texts, one per line, to score instead of generating: prints the log-likelihood
    #: of each in nats, its perplexity, the number of predicted tokens, and the text. A prompt, if
    #: given, is the context of each.
    score: Path | None = None
    length: Annotated[int, Bounds(1, 10_000_000)] = 500  # most tokens to add to a prompt.
    #: where a poem from a prompt ends: where the "model" ends it, or after the full "length". A
    #: template is always filled in.
    ending: Literal["model", "length"] = "model"
    stop: tuple[str, ...] = ()  # texts that end generation; they are removed.
    top_n: CountOrZero = 0  # sample from the n most likely tokens only; 0 for all.
    #: sample only from the most likely tokens with this total probability.
    top_p: float = 1.0
    min_p: float = 0.0  # minimum probability relative to that of the most likely token.
    #: above 1 makes tokens that already occur in the text less likely.
    repetition_penalty: Annotated[float, Bounds(above=0)] = 1.0
    forbid: str = ""  # characters (for a word model, words) that are never generated.
    temperature: PositiveOrZero = 1.0  # divides the logits; 0 takes the most likely token.
    greedy: bool = False  # always take the most likely token, like temperature 0.
    #: whether a word model's unknown token is "never" taken, or "ends" the text.
    unknown: Literal["never", "ends"] = "never"
    #: show unknown characters of the template as they are, and feed them to the model as unknown,
    #: instead of raising an error.
    feed_unknown: bool = False
    line_length: Count | None = None  # start a new line after this many tokens.
    stream: bool = False  # show the text while it is generated.
    #: print the most likely of this many texts, judged with their given characters.
    best_of: _MANY | None = None
    #: search for the most likely texts with this many hypotheses instead of sampling.
    beams: _MANY | None = None
    #: exponent of the length by which a beam search divides log-probabilities.
    length_penalty: Annotated[float, Bounds(-1e6, 1e6)] = 1.0
    seed: Annotated[int, Bounds(0, 2**32 - 1)] = 0  # random seed of the draws.
    #: number of texts per prompt or template, each with its own draws.
    batch: Annotated[int, Bounds(1, 1_000_000)] = 1
    side_by_side: _MANY = 64  # number of texts generated at once.
    #: dtype of the weights; bfloat16 halves their memory, and is faster for many texts.
    weights: Literal["float32", "bfloat16"] | None = None
    jsonl: bool = False  # print one JSON object per line, with tokens and log-probabilities.
    #: checkpoint: a step, the newest good one, or the best on held-out data.
    step: Step = "newest"
    #: generate with a bidirectional model although it cannot do it well, having seen the future.
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
    """Label texts, one per line, with a trained classifier.

    For each line of the file or of standard input, prints the label, the probability that the text
    is positive, and the text, separated by tabs. Only LF and CRLF end a line; empty ones count.
    """

    #: a folder made by train.py with the reviews preset.
    run_dir: Annotated[Path, tyro.conf.Positional]
    #: UTF-8 text, one review per line; by default standard input.
    file: Annotated[Path | None, tyro.conf.Positional] = None
    batch_size: Count = 128  # number of texts per batch.
    #: checkpoint: a step, the newest good one, or the best on held-out data.
    step: Step = "best"


@dataclass(frozen=True)
class ConvertCommand(Checked):
    """Write the weights of a run or file to a safetensors file, with PyTorch's names or our own."""

    #: a folder made by train.py; or a .safetensors, .pt or .pth file in either layout.
    source: Annotated[Path, tyro.conf.Positional]
    target: Annotated[Path, tyro.conf.Positional]  # the .safetensors file to write.
    #: "pytorch": encoder.weight, rnn.*, decoder.*, or weight_ih_l0 and so on for layers only;
    #: "plain": embedding, layers/0/w_x, output/w and so on. By default "pytorch" for a run, and for
    #: a file the other layout than its own.
    to: Literal["pytorch", "plain"] | None = None
    #: checkpoint of a run: a step, the newest good one, or the best on held-out data.
    step: Step = "newest"
    #: read only layers with this prefix from a PyTorch file, for example "rnn.".
    prefix: str | None = None
    encoder: str = "encoder"  # name of the embedding in the PyTorch model.
    rnn: str = "rnn"  # name of its recurrent layers.
    decoder: str = "decoder"  # name of its output layer.
    #: for one-hot inputs, write the identity as encoder.weight.
    identity_encoder: bool = False
    overwrite: bool = False  # replace the target if it exists.


@dataclass(frozen=True)
class ExportCommand(Checked):
    """Write a run's model with its weights as a program that only needs jax and flatbuffers.

    Load it with jax.export.deserialize(open(TARGET, "rb").read()) and run it with .call(...).
    """

    run_dir: Annotated[Path, tyro.conf.Positional]  # a folder made by train.py.
    target: Annotated[Path, tyro.conf.Positional]  # the file to write.
    #: "step", the default: (carry ..., token) to (carry ..., logits); "sampler": (prompt, key data,
    #: temperature, top n) to tokens; "classifier": (tokens, mask) to probability.
    what: Literal["step", "sampler", "classifier"] = "step"
    places: Count = 256  # number of tokens that a sampler generates.
    #: platforms to export for; by default that of this process.
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ()
    #: checkpoint: a step, the newest good one, or the best on held-out data; by default a
    #: classifier's best one, and a language model's newest.
    step: Step | None = None
    overwrite: bool = False  # replace the target if it exists.


@dataclass(frozen=True)
class PlotCommand:
    """Draw training and held-out loss and accuracy of several runs against the epoch."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]  # folders made by train.py.
    output: Path = Path("curves.png")  # the picture to write.

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("there is no run to draw; name one run folder or more")
