"""`python -m reopold.micro OUT CONFIG.json`: build the micro suite in its own process."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from reopold.config import ConfigError
from reopold.micro.build import build_suite
from reopold.parent import watch_parent
from reopold.recipes import parse
from reopold.study_config import MicroConfig


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m reopold.micro", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("config", type=Path, help="JSON of a MicroConfig")
    options = parser.parse_args()
    watch_parent(lambda: os._exit(1))
    try:
        config = parse(
            json.loads(options.config.read_text(encoding="utf-8")), MicroConfig, str(options.config)
        )
        built = build_suite(options.out, config)
    except (ConfigError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"micro suite {'written to' if built else 'is there already:'} {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
