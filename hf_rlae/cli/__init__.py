"""Floor 7: the `hf-rlae` command, which parses, calls and prints."""
