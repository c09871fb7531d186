"""Commands of `hf-curate` that work on what is there: HELP, `add_options(parser)` and `run(arguments)` each."""
