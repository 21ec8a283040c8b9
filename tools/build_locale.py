"""Write locales/en/nodeDefs.json, the texts of the page, from what the nodes say of themselves.

Start ComfyUI with this pack, then: python tools/build_locale.py --url http://127.0.0.1:8188
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from object_info import object_info

PATH = Path(__file__).parents[1] / "locales" / "en" / "nodeDefs.json"


def texts(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Names and tooltips of one node, as ComfyUI's page looks them up."""
    found = [
        (name, entry[1] if len(entry) > 1 else {})
        for group in ("required", "optional")
        for name, entry in spec["input"].get(group, {}).items()
    ]
    tips = spec.get("output_tooltips") or [None] * len(spec["output_name"])
    return {
        "display_name": spec["display_name"],
        "description": spec["description"],
        "inputs": {name: {"name": name.replace("_", " "), "tooltip": options["tooltip"]} for name, options in found},
        "outputs": {
            str(index): {"name": name, "tooltip": tip}
            for index, (name, tip) in enumerate(zip(spec["output_name"], tips, strict=True))
        },
    }


def main() -> None:
    specs = object_info(__doc__)
    ours = {name: texts(spec) for name, spec in sorted(specs.items()) if name.startswith("Qarvd")}
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(f"{json.dumps(ours, indent=2, ensure_ascii=False)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
