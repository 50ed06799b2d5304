"""Floor 8: the `hf-rlae` command, which parses arguments, calls the library and prints."""
