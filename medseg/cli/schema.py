"""``medseg schema``: the JSON schema of configs, by which editors complete and check them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from medseg.config import Config

_EDITORS = """\
Editors that speak the YAML language server read the schema from a line in the config itself:
  # yaml-language-server: $schema=schema.json
with the file written once beside the configs:
  medseg schema > schema.json
"""


def config_schema() -> str:
    """The JSON schema (draft 2020-12) of a config, indented, with a final line break."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the schema; returns 0."""
    parser = argparse.ArgumentParser(
        prog="medseg schema",
        description="Print the JSON schema of configs.",
        epilog=_EDITORS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.parse_args(argv)
    sys.stdout.write(config_schema())
    return 0
