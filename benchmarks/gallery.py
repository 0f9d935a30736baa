"""Run named studies and keep their telling figures in ``docs/gallery``: ``python -m benchmarks.gallery [NAME ...]``.

What is kept of a study is what a page of the docs needs: figures as SVG, the numbers plotted in each as CSV, and
``NAME.json`` with the command, the fingerprint of the configuration and what was found. ``docs/gallery.md`` is written
from these files, and the numbers in ``docs/choosing.md`` are read from them again: each is a link to the file it comes
from, whose title says where in it, as in ``[7.6 % (6.7 to 8.6)](gallery/NAME/bias.csv "PANEL | CURVE | AT")``.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT
from latentpg.runs import write_json
from latentpg.studies import MEASURES, make_study, pages
from latentpg.studies.options import command_of
from latentpg.studies.plots import PLOTS
from latentpg.studies.store import fingerprint_of

DOCS = ROOT / "docs"
GALLERY = DOCS / "gallery"
PAGE = DOCS / "gallery.md"
CHAPTER = DOCS / "choosing.md"
NAMED = "../latentpg/studies/named"
NUM_WORKERS = 2


@dataclass(frozen=True)
class Shown:
    """What is kept of a study: figures by the stems of their files, and what to look at in them."""

    figures: tuple[str, ...]
    look: str


STUDIES: Mapping[str, Shown] = {
    "quickstart": Shown(
        ("bias", "mse_evaluations"),
        "Triangles are upper ends of intervals that reach zero: what keeps the recorded latent shows no bias at any K.",
    ),
    "guide-quality": Shown(
        ("1-bias", "1-mse"),
        "From panel to panel the same estimators with another guide.",
    ),
    "span": Shown(
        ("bias", "ess"),
        "Prior proposals lose the posterior as a row grows longer; half of a mixture does not.",
    ),
    "reward-offset": Shown(
        ("bias", "mse"),
        "To the right the same rewards with a constant added.",
    ),
    "ratio": Shown(
        ("1-ratio_variance", "1-clip_plus", "3-bias"),
        "The first two are exact sums over actions and particles; the third is measured on rows.",
    ),
    "overfit": Shown(
        ("1-stored_gain", "1-exact_gain", "1-overfit_gap"),
        "The advantages are noise: a difference between the first figure and the second is fitted to the particles.",
    ),
    "snr": Shown(
        ("coordinate_snr", "bias"),
        "Dotted straight lines have the slopes ±1/2.",
    ),
    "gmm": Shown(
        ("weight_distance", "guide_distance"),
        "From panel to panel two particles and twenty; the exact gradients are the same in both.",
    ),
    "score-climbing": Shown(
        ("fitted_variance", "fitted_mean"),
        "Dotted lines without marks are the truth.",
    ),
}
"""Every named study, in the order of the page."""


def keep(name: str, run: Path) -> None:
    """Copy a finished run's chosen figures, with their numbers, into the gallery, in the place of earlier ones."""
    study, found = make_study(name), json.loads((run / "result.json").read_text(encoding="utf-8"))
    files = [run / f"{stem}.{kind}" for stem in STUDIES[name].figures for kind in ("svg", "csv")]
    if missing := [file.name for file in files if not file.is_file()]:
        raise SystemExit(f"{name} has no figure {', '.join(missing)}: mend its entry in {Path(__file__).name}")
    shutil.rmtree(GALLERY / name, ignore_errors=True)
    (GALLERY / name).mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, GALLERY / name / file.name)
    content = {
        "title": study.title,
        "command": command_of(study, name),
        "fingerprint": fingerprint_of(study.config()),
        "source": study.source.describe(),
        "num_replicates": study.num_replicates,
        "seed": study.seed,
        "version": json.loads((run / "run.json").read_text(encoding="utf-8"))["versions"]["latentpg"],
        "figures": {stem: _shows(stem, [page.label for page in pages(study)]) for stem in STUDIES[name].figures},
        "findings": found["findings"],
        "skipped": found["skipped"],
    }
    write_json(GALLERY / f"{name}.json", content)


def _shows(stem: str, labels: Sequence[str]) -> str:
    """Say what a figure shows: its measure, and of which page of the study if there are several."""
    number, _, plot = stem.rpartition("-")
    measure = next(each for each in PLOTS if each.name == plot)
    against = "" if measure.cost is None else f" against {measure.cost_label}"
    of = f", {labels[int(number) - 1]}" if number else ""
    return f"{MEASURES[measure.measure].label}{against}{of}"


def run(name: str, runs: Path) -> Path:
    """Run a study into a folder of its name, or go on with what is there; return the folder."""
    out = runs / name
    resume = ["--resume"] if (out / "config.toml").exists() else []
    command = [
        sys.executable,
        "-m",
        "latentpg.cli",
        "study",
        name,
        "--out",
        str(out),
        "--num-workers",
        str(NUM_WORKERS),
    ]
    if subprocess.run([*command, *resume], stdout=subprocess.DEVNULL, check=False).returncode:
        raise SystemExit(f"{name} could not be run; what it said is above")
    return out


def entries() -> Mapping[str, Mapping[str, Any]]:
    """Read what the gallery holds of each study, in the order of the page."""
    paths = {name: GALLERY / f"{name}.json" for name in STUDIES}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}


def page() -> str:
    """Return what ``docs/gallery.md`` should hold."""
    return "\n".join([*_head(), *(line for name, entry in entries().items() for line in _section(name, entry))])


def _head() -> Iterator[str]:
    yield "# Gallery of studies\n"
    yield "<!-- written by `make gallery` from docs/gallery; do not edit -->\n"
    yield "The studies that come with the library, with their telling figures. Each section gives the command that"
    yield "makes the whole run folder; `make gallery` runs them all and writes this page. What follows from them is in"
    yield "[Choosing an estimator](choosing.md). Marks and measures are explained in"
    yield "[Describe a study in a file](howto/study_file.md).\n"


def _section(name: str, entry: Mapping[str, Any]) -> Iterator[str]:
    yield f"({name})="
    yield f"## {entry['title']}\n"
    yield f"`{entry['command']}`: [the study's file]({NAMED}/{name}.toml); {entry['source']};"
    yield f"{entry['num_replicates']} replicates, seed {entry['seed']}, latentpg {entry['version']}."
    yield f"{STUDIES[name].look}\n"
    for stem, shows in entry["figures"].items():
        yield f"```{{figure}} gallery/{name}/{stem}.svg"
        yield f":alt: {shows}\n:width: 420px\n"
        yield f"{name}: {shows}. [The plotted numbers](gallery/{name}/{stem}.csv)."
        yield "```\n"
    yield "| of | line | found | as expected |"
    yield "|---|---|---|---|"
    for each in entry["findings"]:
        words = [each["facet"], each["line"], each["found"], {True: "yes", False: "**no**", None: "–"}[each["agrees"]]]
        yield "| " + " | ".join(word.replace("|", r"\|") for word in words) + " |"
    yield ""
    for each in entry["skipped"]:
        yield f"Skipped: {each['cells']}: {each['reason']}.\n"


CITED = re.compile(r'\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((gallery/[\w./-]+) "([^"]*)"\)')
"""A number of the chapter: its text, the file of the gallery it comes from, and where in it."""


def spell(value: float, low: float, high: float, *, percent: bool) -> str:
    """Write a number as the chapter does: with its interval, or the interval's upper end where that reaches zero.

    >>> spell(0.0759, 0.0672, 0.0855, percent=True), spell(0.01, 0.0, 0.03, percent=True)
    ('7.6 % (6.7 to 8.6)', '≤ 3 %')
    """
    scale, unit = (100, " %") if percent else (1, "")
    digits = [_plain(scale * end, 2 if percent and scale * end < 100 else 3) for end in (value, low, high)]
    if percent and low == 0:
        return f"≤ {digits[2]}{unit}"
    return f"{digits[0]}{unit}" if low == high else f"{digits[0]}{unit} ({digits[1]} to {digits[2]})"


def _plain(value: float, digits: int) -> str:
    """Round to so many digits, without an exponent for large numbers."""
    return f"{float(f'{value:.{digits}g}'):g}"


def cited(text: str, file: Path, where: str) -> str:
    """Return what a cited number should read, from the file it cites: a row of a CSV, or a finding of a JSON."""
    if file.suffix == ".json":
        findings = json.loads(file.read_text(encoding="utf-8"))["findings"]
        found = _only([each for each in findings if f"{each['facet']} | {each['line']}" == where], file, where)["found"]
        pattern = _NUMBER.sub(lambda _: _NUMBER.pattern, re.escape(text).replace(r"\-", "-").replace(r"\.", "."))
        match = re.search(pattern, found)
        if match is None:
            raise LookupError(f"{file}: nothing like {text!r} was found of {where}")
        return match[0]
    with file.open(encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if f"{row['panel']} | {row['curve']} | {row['at']}" == where]
    row = _only(rows, file, where)
    value, low, high = (float(row[key]) for key in ("value", "low", "high"))
    return spell(value, low, high, percent="%" in text)


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def _only(found: Sequence[Mapping[str, Any]], file: Path, where: str) -> Mapping[str, Any]:
    if len(found) != 1:
        raise LookupError(f"{file}: {len(found)} places are {where!r}, not one")
    return found[0]


def with_numbers(chapter: str) -> str:
    """Return the chapter's text with every cited number as the gallery has it now."""

    def replaced(match: re.Match[str]) -> str:
        return f'[{cited(match[1], DOCS / match[2], match[3])}]({match[2]} "{match[3]}")'

    return CITED.sub(replaced, chapter)


def write() -> None:
    """Write the page anew, and the numbers of the chapter."""
    PAGE.write_text(page(), encoding="utf-8")
    CHAPTER.write_text(with_numbers(CHAPTER.read_text(encoding="utf-8")), encoding="utf-8")


def main(words: Sequence[str] | None = None) -> None:
    """Run the studies that are named, or all of them, and write what the docs show of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *STUDIES], help="studies; without any, all")
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"), help="where run folders lie or go")
    options = parser.parse_args(words)
    for name in options.names or STUDIES:
        keep(name, run(name, options.runs))
    write()
    print(PAGE)


if __name__ == "__main__":
    main()
