"""The verbs of the command line, and how overrides are told from their own arguments."""

from lm.errors import UsageError

VERBS = {  # in the order of use
    "train": "train a model; continues if the folder holds a run",
    "eval": "loss, perplexity and bits per byte of a checkpoint",
    "generate": "continue a prompt, streaming",
    "export": "a checkpoint in Hugging Face's format",
    "data": "build token shards from raw text; count what is in them",
    "tokenizer": "train a byte-level BPE; look at one",
    "find-lr": "a learning-rate range test: a suggestion, JSON and a plot",
    "sweep": "train every variant of a config with every seed, and say what the difference is worth",
    "report": "what a sweep says, as one page",
    "fit-scaling": "a scaling law over a sweep's runs: predicted loss of a larger one",
    "launch": "any verb as a job on cloud TPUs, a GPU cluster or this machine",
    "plan": "memory, communication and step time on hardware that is not here",
    "coord-check": "muP: do activations keep their size as the model gets wider",
    "inspect": "what is in a checkpoint, or a config's parameters and FLOPs",
}


def split_overrides(arguments: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Separate `--config.a.b=v` and `--config.a.b v` from the other arguments, wherever they stand before a `--`.

    Raises:
      UsageError: an override without a value.
    """
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if argument == "--":  # what follows is another verb's
            return [*rest, argument, *queue], overrides
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        path, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals:
            if not queue or queue[0].startswith("--"):
                raise UsageError(f"{argument} needs a value: {argument}=VALUE.")
            value = queue.pop(0)
        overrides.append((path, value))
    return rest, overrides
