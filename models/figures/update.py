#!/usr/bin/env python3
"""Keeps what was measured of a bundle in models/figures/NAME.json, which the pages quote.

    simulator figures --bundle photos --images DIR --format json full_top1 best_point_top1 |
        models/figures/update.py photos --command 'simulator figures --bundle photos --images DIR'

    simulator run configs/scenarios/outage.toml --format json |
        models/figures/update.py street --command 'simulator run configs/scenarios/outage.toml --format json' \
            --take outage_mpc_expected=mpc:expected_quality:ratio

takes JSON lines from standard input. With --take NAME=CONTROLLER:FIELD:UNIT it keeps single values of a
scenario, which the test simulator/tests/documents.rs measures again; without, every figure that has a
value. Figures of another version of the bundle are dropped: they want to be measured anew.
"""

import argparse
import datetime
import hashlib
import json
import pathlib
import platform
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="name of a folder in models/bundles")
    parser.add_argument("--command", required=True, help="what printed the lines")
    parser.add_argument("--take", action="append", default=[], metavar="NAME=CONTROLLER:FIELD:UNIT")
    parser.add_argument("--measured", default=measured(), help="when, with what and where [default: %(default)s]")
    options = parser.parse_args()

    lines = [json.loads(line) for line in sys.stdin if line.strip()]
    entries = taken(lines, options.take) if options.take else figures(lines)
    for entry in entries.values():
        entry.update(command=options.command, measured=options.measured)

    file = ROOT / "models" / "figures" / f"{options.bundle}.json"
    bundle = identity(options.bundle)
    known = json.loads(file.read_text()) if file.exists() else {"bundle": bundle, "figures": {}}
    kept = known["figures"] if known["bundle"] == bundle else {}
    everything = {"bundle": bundle, "figures": dict(sorted((kept | entries).items()))}
    file.write_text(json.dumps(everything, indent=2, ensure_ascii=False) + "\n")


def measured() -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return f"{datetime.date.today()} at {commit.stdout.strip() or 'an unknown commit'} on {platform.machine()}"


def identity(name: str) -> dict[str, str]:
    text = (ROOT / "models" / "bundles" / name / "manifest.toml").read_bytes()
    return {"name": name, "version": tomllib.loads(text.decode())["version"], "digest": hashlib.sha256(text).hexdigest()}


def figures(lines: list[dict]) -> dict[str, dict]:
    """Lines of `simulator figures --format json`."""
    keys = ("value", "unit", "target", "better", "detail")
    return {line["name"]: {key: line[key] for key in keys} for line in lines if line["value"] is not None}


def taken(lines: list[dict], wanted: list[str]) -> dict[str, dict]:
    """Single values of `simulator run --format json`, a line for each controller."""
    entries = {}
    for one in wanted:
        name, _, source = one.partition("=")
        controller, field, unit = source.rsplit(":", 2)
        found = [line for line in lines if line["controller"] == controller]
        if len(found) != 1:
            sys.exit(f"{controller!r} is not one of {', '.join(line['controller'] for line in lines)}")
        entries[name] = {"value": found[0][field], "unit": unit, "controller": controller, "field": field}
    return entries


if __name__ == "__main__":
    main()
