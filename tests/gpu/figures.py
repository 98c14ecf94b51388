"""Figures of a machine as one JSON file: `python -m tests.gpu.figures FOLDER SECONDS FILE`, called by `run.sh`."""

from __future__ import annotations

import csv
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmark.records.store import Store, write_atomic


def figures(folder: Path, seconds: int) -> dict[str, object]:
    """What the tests said, what training took, every line of the throughput."""
    cases = list(ET.parse(folder / "tests.xml").getroot().iter("testcase"))
    ends = {kind: [case.get("name") for case in cases if case.find(kind) is not None] for kind in ("failure", "error")}
    skipped = sum(case.find("skipped") is not None for case in cases)
    records = Store(folder / "quick").load_all()
    with (folder / "speed.csv").open(encoding="utf-8") as file:
        speed = list(csv.DictReader(file))
    return {
        "tests": {"tests": len(cases), **ends, "skipped": skipped},
        "environment": dict(records[0].environment),
        "versions": dict(records[0].versions),
        "quick": {
            "seconds": seconds,
            "cells": [
                {"row": record.label, "seed": record.seed, "status": record.status, "metrics": record.metrics}
                for record in records
            ],
        },
        "throughput": speed,
    }


if __name__ == "__main__":
    found = figures(Path(sys.argv[1]), int(sys.argv[2]))
    write_atomic(Path(sys.argv[3]), json.dumps(found, indent=1).encode())
