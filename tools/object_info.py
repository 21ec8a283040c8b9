"""What a running ComfyUI says of its nodes."""

from __future__ import annotations

import argparse
import json
import urllib.request
from typing import Any


def object_info(about: str | None) -> dict[str, Any]:
    """Ask the ComfyUI that the command line names, by `--url`, for its nodes; `about` is the command's help."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8188", help="of a ComfyUI that runs with this pack")
    with urllib.request.urlopen(f"{parser.parse_args().url}/object_info") as answer:
        return json.load(answer)
