"""`python -m hf_rlae` is the command `hf-rlae`."""

import sys

from hf_rlae.cli.main import main

sys.exit(main())
