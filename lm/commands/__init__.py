"""One file per verb: `HELP`, `add_arguments(parser)` and `run(args)`; heavy imports inside `run`."""
