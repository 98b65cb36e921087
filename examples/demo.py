"""What ``make demo`` runs: two embedded models on real images, a table, and where the reports lie."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

RUNS = {
    Path(
        "runs/demo-digits"
    ): "evaluate demo:mnist-robust --data demo:mnist --limit 500 --threat linf:0.2 --attack fgsm "
    "--attack pgd:steps=40 --curve",
    Path("runs/demo-photos"): "evaluate demo:efficientnet_lite0 --data demo:photos --threat linf:1/255 --attack fgsm "
    "--attack pgd:steps=10 --curve",
}
console = Console()


def robustkit(title: str, arguments: str) -> int:
    """Show a command, run it, and return its exit code."""
    console.rule(title)
    console.print(f"$ robustkit {arguments}", style="bold", highlight=False, soft_wrap=True)
    return subprocess.run([sys.executable, "-m", "robustkit", *shlex.split(arguments)], check=False).returncode


def table() -> Table:
    """What came out."""
    shown = Table("model", "data", "threat", "n", "clean", "robust (95 % interval)")
    for folder in RUNS:
        r = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        robust = f"{r['robust_accuracy']:.1%} ({r['interval'][0]:.1%} to {r['interval'][1]:.1%})"
        shown.add_row(
            r["model"]["name"],
            r["data"]["name"],
            r["threat"]["text"],
            str(r["n"]),
            f"{r['clean_accuracy']:.1%}",
            robust,
        )
    return shown


def main() -> None:
    """Both evaluations, the table, the reports."""
    titles = ("Digits: a network trained to be robust", "Photographs: a network that was not")
    codes = [
        robustkit(title, f"{arguments} --out {folder}")
        for title, (folder, arguments) in zip(titles, RUNS.items(), strict=True)
    ]
    if any(codes):
        raise SystemExit(f"an evaluation ended with exit code {max(codes)}; its message stands above")
    console.rule("Results")
    console.print(table())
    for folder in RUNS:
        console.print(f"report: {(folder / 'report.html').resolve()}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
