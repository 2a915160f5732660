"""Redraw docs/images/report.png: the top of the report on a run, as Chromium shows it.

Usage: ``python -m scripts.draw_report RUN``. It needs Chromium and Pillow.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from esplug.report.figures import of_one
from esplug.report.page import render
from esplug.report.run_data import read_run

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "report.png"
WIDTH, HEIGHT = 1220, 1730


def main() -> None:
    """Write the report to a temporary folder, and the picture to the documentation."""
    from PIL import Image

    run = read_run(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder, "report.html"), Path(folder, "report.png")
        page.write_text(render([run], of_one(run)), encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000"]
        options += [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={shot}", f"--user-data-dir={folder}/profile"]
        subprocess.run(["chromium", *options, page.as_uri()], check=True, capture_output=True)
        Image.open(shot).convert("RGB").quantize(64).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
