"""The `export` command: write a run's model as a program that only needs JAX."""

from lstm_jax.classifier import Classifier
from lstm_jax.cli.options import ExportCommand
from lstm_jax.interop import export
from lstm_jax.interop.files import require_target
from lstm_jax.models import LanguageModel
from lstm_jax.training.run import load


def run(command: ExportCommand) -> int:
    """Write the file; raises ValueError for user errors."""
    require_target(command.target, overwrite=command.overwrite)
    platforms = command.platforms or None
    kind = Classifier if command.what == "classifier" else LanguageModel
    model, params, vocabulary, _ = load(command.run_dir, step=command.step, kind=kind)
    if command.what == "classifier":
        exported = export.export_classifier(model, params, platforms=platforms)
    elif command.what == "step":
        exported = export.export_step(model, params, platforms=platforms)
    else:
        # As in `sample.py`, padding and the unknown token are never generated.
        forbidden = [id for id in (vocabulary.padding, vocabulary.unknown) if id is not None]
        exported = export.export_sampler(
            model, params, command.places, forbidden=forbidden, platforms=platforms
        )
    size = export.save_exported(command.target, exported)
    print(f"wrote {size:,} bytes for {', '.join(exported.platforms)}: {command.target}")
    print(f"{command.what}: {export.signature(exported)}")
    return 0
