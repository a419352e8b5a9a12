#!/usr/bin/env python3
"""Text to token ids and back, with a checkpoint's own tokenizer: see token_ids.py, or --help."""

import os
import sys

if __name__ == "__main__":
    import token_ids
    sys.exit(token_ids.main())

# Python's own module of this name was meant: a script runs with its folder first on the path, and much of the standard library
# imports tokenize. Stand aside.
with open(os.path.join(os.path.dirname(os.__file__), "tokenize.py"), encoding="utf-8") as own:
    exec(compile(own.read(), own.name, "exec"))
