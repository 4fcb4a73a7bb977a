"""Write text with a trained model.

    python generate.py --run runs/default --prompt "The "
    python generate.py --run runs/default --prompt "To be" --tokens 500 --temperature 0.7 --top-k 40 --seed 1

The text streams as it is made, and ends after --tokens or where the model ends its document. A model sees no more
than its context: of a longer prompt, and of a text that has grown longer, only the end.

Exit codes: 0 done; 2 something to mend, told in one line; 130 stopped by Ctrl-C.
"""

import dataclasses
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path

from training.cli import checked_flags, parse
from training.errors import SettingsError, checked, one_line_errors
from training.loop import prompt_ids
from training.run import load_for_generation
from training.settings import newest_run


@dataclass(frozen=True)
class Arguments:
    """Write text with a trained model."""

    run: str = ""
    """The run folder of train.py; empty: the newest in runs/."""
    prompt: str = "The "
    """What to go on from; empty: the start of a document."""
    tokens: int = 200
    """How many tokens to add at most."""
    temperature: float = 0.8
    """Below 1 the likely becomes likelier; 0: always the most likely token."""
    top_k: int | None = None
    """Draw only from the k most likely tokens."""
    top_p: float | None = None
    """Draw only from the most likely tokens that hold this probability together."""
    seed: int | None = None
    """The same seed gives the same text."""
    checkpoint: str = "best"
    """best (lowest validation loss) | last | the number of a step."""


def main() -> None:
    with one_line_errors("generate.py"):
        flags = checked_flags(sys.argv[1:], [field.name for field in dataclasses.fields(Arguments)])
        write(parse(Arguments, flags, "generate.py"))


def write(arguments: Arguments) -> None:
    """Continue the prompt on stdout."""
    if arguments.tokens < 0 or (arguments.seed or 0) < 0:
        raise SettingsError("--tokens and --seed must be at least 0")
    folder = Path(arguments.run) if arguments.run else newest_run(Path("runs"))
    if folder is None:
        raise SettingsError("there is no run in runs/; train one with train.py, or name its folder with --run")
    model, tokenizer = load_for_generation(folder, arguments.checkpoint)
    with checked():
        prompt = prompt_ids(tokenizer, arguments.prompt)
        stream = model.stream(
            prompt, arguments.tokens, temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p,
            seed=arguments.seed, stop_id=tokenizer.eot_id,
        )  # fmt: skip
        first = list(itertools.islice(stream, 1))  # settings are looked at when the first token is asked for
    block_size = model.config.block_size
    if len(prompt) > block_size:
        print(f"the prompt has {len(prompt)} tokens; the model sees the last {block_size}", file=sys.stderr)

    decoder = tokenizer.decoder()
    sys.stdout.write(arguments.prompt)
    for token in itertools.chain(first, stream):
        if token != tokenizer.eot_id:
            sys.stdout.write(decoder.feed(token))  # characters as they become whole
            sys.stdout.flush()
    sys.stdout.write(decoder.finish() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
