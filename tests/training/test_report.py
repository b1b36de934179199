"""Reports of finished, unfinished and broken run folders; comparisons over seeds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from kintsugi.errors import RunError
from kintsugi.training import kind_tables
from kintsugi.training.intervals import paired_t, wilson_interval
from kintsugi.training.report import as_dict, compare, summary, write_report

MAIN, CONTROL = [0.287, 0.363, 0.442, 0.430, 0.567], [0.287, 0.338, 0.353, 0.358, 0.398]


def evaluation(
    round: int, rate: float, arm: str = "main", promoted: bool = True, kinds: dict[str, tuple[int, int]] | None = None
) -> dict[str, Any]:
    return {
        **({"kinds": kinds} if kinds else {}),
        "kind": "evaluation", "arm": arm, "round": round, "policy_version": f"{arm}-{round}", "success_rate": rate,
        "num_tasks": 300, "interval": wilson_interval(int(rate * 300), 300), "promoted": promoted,
    }  # fmt: skip


def make_run(
    folder: Path, main: list[float] = MAIN, control: list[float] = CONTROL, *, name: str = "demo", seed: int = 0
) -> Path:
    folder.mkdir(parents=True)
    info = {"name": name, "seed": seed, "recipe": {"rounds": 4}, "packages": {"torch": "2.13.0"}, "commit": "abc"}
    (folder / "run.json").write_text(json.dumps({**info, "command": ["kintsugi", "train", "<demo>"]}))
    lines: list[dict[str, Any]] = []
    for number, rate in enumerate(main):
        if number:
            lines.append(
                {
                    "kind": "round", "round": number, "tasks": 250, "solved": 80 + 10 * number, "repairs": 200,
                    "repairs_right": 12, "fresh": 200, "fresh_right": 6, "generated_tokens": 50_000, "seconds": 60.0,
                }
            )  # fmt: skip
            lines.append({"kind": "learn", "round": number, "arm": "main", "steps": 250, "loss": 0.5, "seconds": 30.0})
            lines.append({"kind": "gate", "round": number, "promoted": number != 3, "reason": f"reason <{number}>"})
        lines.append(evaluation(number, rate, promoted=number != 3))
    lines += [evaluation(number, rate, "control", False) for number, rate in enumerate(control)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Tags(HTMLParser):
    """Checks that every element is closed in order, and gathers what is referred to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "demo-0"))
    text = page.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and tags.links == [] and "<script" not in text
    assert "from 28.7 % to 56.7 %" in text and "the control stands at 39.8 %" in text
    assert "prefers-color-scheme: dark" in text and text.count('<circle class="dot') == 10
    assert "reason &lt;1&gt;" in text and "&lt;demo&gt;" in text and "torch 2.13.0" in text
    png = (tmp_path / "demo-0" / "evolution.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 20_000


def test_summary_table(tmp_path: Path) -> None:
    text = summary(make_run(tmp_path / "demo-0"))
    lines = text.splitlines()
    assert max(len(line) for line in lines[1:-3]) <= 80
    assert re.search(r"^4 \*\s+56\.7\s+51\.\d-62\.\d\s+39\.8\s+promoted\s+120/250\s+6\.0\s+3\.0\s+250$", text, re.M)
    assert re.search(r"^3 \s+43\.0.*kept", text, re.M)
    assert "a repair is right 2.00 x as often" in text and "200,000 tokens generated" in text


def test_only_what_the_table_has_is_explained(tmp_path: Path) -> None:
    """Without repairs, no column, no line and no sentence speaks of them."""

    def told(name: str, *left_out: str) -> tuple[str, str]:
        folder = make_run(tmp_path / name)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            for key in left_out:
                line.pop(key, None)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return summary(folder), write_report(folder).read_text(encoding="utf-8")

    repair, fresh = ("repairs", "repairs_right"), ("fresh", "fresh_right")
    for text in told("both"):
        assert "* champion; repair, fresh: % of these tries that were right" in text
    for text in told("repair", *fresh):
        assert "* champion; repair: % of these tries" in text and "fresh" not in text
    for text in told("neither", *repair, *fresh):
        assert "* champion" in text and "repair" not in text and "fresh" not in text
    empty = make_run(tmp_path / "empty", [], [])
    assert "champion" not in summary(empty)
    alone = write_report(make_run(tmp_path / "alone", MAIN[:3], [])).read_text(encoding="utf-8")
    assert "dashed" not in alone and "hollow" not in alone and "<th>control</th>" not in alone


def test_numbers_for_json(tmp_path: Path) -> None:
    found = json.loads(json.dumps(as_dict(make_run(tmp_path / "demo-0"))))
    assert found["finished"] and found["champion"]["round"] == 4 and len(found["control"]) == 5
    assert found["totals"]["steps"] == 1000 and found["totals"]["seconds"] == 360


def test_runs_that_were_cut_off(tmp_path: Path) -> None:
    empty = make_run(tmp_path / "empty", [], [])
    assert "Nothing has been evaluated yet" in summary(empty) and write_report(empty).exists()
    (empty / "metrics.jsonl").unlink()
    assert as_dict(empty)["main"] == []
    started = make_run(tmp_path / "started", MAIN[:1], [])
    assert "no round is finished" in summary(started) and write_report(started).exists()
    cut = make_run(tmp_path / "cut", MAIN[:3], CONTROL[:2])
    with (cut / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "evaluation", "round": 3, "succ')
    assert not as_dict(cut)["finished"] and "in 2 of 4 rounds" in summary(cut)
    assert write_report(cut).exists()


def test_rounds_with_nothing_to_learn(tmp_path: Path) -> None:
    """A policy that never solves anything: its rounds are done, and it is said that none trained. Likewise some of many."""

    def idle(folder: Path, *rounds: int) -> Path:
        with (folder / "metrics.jsonl").open("a") as file:
            for number in rounds:
                file.write(json.dumps({"kind": "round", "round": number, "tasks": 6, "solved": 0}) + "\n")
                file.write(json.dumps({"kind": "select", "round": number, "rows": 0}) + "\n")
        return folder

    never = idle(make_run(tmp_path / "never", MAIN[:1], []), 1, 2, 3, 4)
    assert "4 of 4 rounds are done, and none found anything to learn." in summary(never) and as_dict(never)["finished"]
    assert re.search(r"^4 +no rows +0/6$", summary(never), re.M) and "none found anything" in write_report(never).read_text()
    begun = idle(make_run(tmp_path / "begun", MAIN[:1], []), 1)
    assert "1 of 4 rounds are done" in summary(begun) and not as_dict(begun)["finished"]
    some = idle(make_run(tmp_path / "some", MAIN[:4], CONTROL[:4]), 4)
    assert "in 4 of 4 rounds" in summary(some) and "in 1 of these rounds there was nothing to learn" in summary(some)
    assert as_dict(some)["finished"]


def test_a_repeated_stage_counts_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "again")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(evaluation(4, 0.6)) + "\n")
    found = as_dict(run)["main"]
    assert len(found) == 5 and found[-1]["rate"] == 0.6


def test_no_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"found no run\.json"):
        write_report(tmp_path)
    with pytest.raises(RunError, match="expected evaluations"):
        compare([make_run(tmp_path / "empty", [], [])])


def seeds_of(tmp_path: Path, name: str, lasts: list[float], control: list[float]) -> list[Path]:
    return [
        make_run(tmp_path / f"{name}-{seed}", [0.3, last], [0.3, beside], name=name, seed=seed)
        for seed, (last, beside) in enumerate(zip(lasts, control, strict=True))
    ]


def test_compare_pairs_by_seed(tmp_path: Path) -> None:
    first, second, control = [0.5, 0.6, 0.7], [0.45, 0.5, 0.7], [0.3, 0.35, 0.4]
    runs = seeds_of(tmp_path, "kintsugi", first, control) + seeds_of(tmp_path, "plain", second, control)
    found = compare(runs[::-1])
    assert [arm.label for arm in found.arms] == ["plain", "plain control", "kintsugi", "kintsugi control"]
    gaps = {(a, b): gap for a, b, gap in found.differences}
    expected = paired_t(second, first)
    assert gaps["plain", "kintsugi"].difference == pytest.approx(expected.difference)
    assert gaps["plain", "kintsugi"].low == pytest.approx(expected.low)
    text = str(found)
    assert "60.0 ± 10.0" in text and "30.0 ± 10.0" in text and "-5.0" in text and "paired by seed" in text.lower()
    assert found.picture == tmp_path / "comparison.png" and found.picture.read_bytes().startswith(b"\x89PNG")
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["arms"][2]["mean"] == pytest.approx(0.6) and len(plain["differences"]) == 6


def test_compare_one_seed_claims_no_interval(tmp_path: Path) -> None:
    runs = seeds_of(tmp_path, "a", [0.5], [0.3]) + seeds_of(tmp_path, "b", [0.4], [0.3])
    found = compare(runs, tmp_path / "here.png")
    assert "one seed" in str(found) and (tmp_path / "here.png").exists()
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["differences"][0]["low"] is None


def test_same_name_and_seed_are_told_apart_by_folder(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "k5-0", name="demo"), make_run(tmp_path / "k8-0", name="demo")]
    assert [arm.label for arm in compare(runs).arms] == ["k5", "k5 control", "k8", "k8 control"]


def test_matplotlib_is_imported_late() -> None:
    code = "import sys, kintsugi.training.report\nprint('matplotlib' in sys.modules, 'torch' in sys.modules)"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert asked.stdout.split() == ["False", "False"], asked.stderr


# -- by kind of task -------------------------------------------------------------------------------------------------------


def by_kind(run: Path, last: int, control: int = 3) -> Path:
    """A run whose evaluations say how many were won of two kinds: 10 tasks that are heated, 20 that are cooled."""
    found = [
        evaluation(0, 0.2, kinds={"heat a thing": (2, 10), "cool a thing": (4, 20)}),
        evaluation(1, 0.4, promoted=True, kinds={"heat a thing": (9, 10), "cool a thing": (3, 20)}),
        evaluation(2, 0.3, promoted=False, kinds={"heat a thing": (last, 10), "cool a thing": (5, 20)}),
        evaluation(0, 0.2, "control", kinds={"heat a thing": (2, 10), "cool a thing": (4, 20)}),
        evaluation(2, 0.2, "control", kinds={"heat a thing": (control, 10), "cool a thing": (0, 20)}),
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    return run


def test_success_by_kind_of_one_run(tmp_path: Path) -> None:
    run = by_kind(make_run(tmp_path / "demo-0"), 6)
    text = summary(run)
    table = text[text.index("held out by kind") :].splitlines()
    assert " ".join(table[0].split()) == "held out by kind, % tasks start last round control 95 % of the last"
    low, high = wilson_interval(6, 10)
    assert table[1].split() == ["heat", "a", "thing", *f"10 20.0 60.0 30.0 {100 * low:.1f}-{100 * high:.1f}".split()]
    assert table[2].split()[:7] == ["cool", "a", "thing", "20", "20.0", "25.0", "0.0"]
    assert all(len(line) <= 80 for line in text.splitlines()[1:])
    plain = json.loads(json.dumps(as_dict(run)))
    assert plain["main"][2]["kinds"] == {"heat a thing": [6, 10], "cool a thing": [5, 20]}
    assert "<h2>By kind of task</h2>" in write_report(run).read_text(encoding="utf-8")


def test_tasks_of_one_kind_have_no_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo-0")
    assert "by kind" not in summary(run) and "By kind" not in write_report(run).read_text(encoding="utf-8")
    assert "by kind" not in str(compare([run])) and compare([run]).as_dict()["arms"][0]["kinds"] == {}


def test_success_by_kind_over_seeds(tmp_path: Path) -> None:
    runs = [
        by_kind(make_run(tmp_path / f"{name}-{seed}", name=name, seed=seed), last)
        for name, seed, last in (("plain", 0, 2), ("plain", 1, 4), ("notes", 0, 7), ("notes", 1, 9))
    ]
    found = compare(runs)
    table = str(found)[str(found).index("held out by kind") :].splitlines()
    assert " ".join(table[0].split()) == "held out by kind, % plain plain control notes notes control"
    assert " ".join(table[1].split()) == "heat a thing 30.0 ± 14.1 30.0 ± 0.0 80.0 ± 14.1 30.0 ± 0.0"
    plain = json.loads(json.dumps(found.as_dict()))
    kinds = {arm["label"]: arm["kinds"] for arm in plain["arms"]}
    assert kinds["notes"]["heat a thing"]["mean"] == pytest.approx(0.8)
    assert kinds["notes"]["heat a thing"]["seeds"] == {"0": [7, 10], "1": [9, 10]}
    assert kinds["plain control"]["cool a thing"]["mean"] == 0.0
    # One seed has no spread, and many arms stand in several tables of at most 80 columns.
    single = compare(runs[:1])
    assert "20.0" in str(single) and single.as_dict()["arms"][0]["kinds"]["heat a thing"]["sd"] is None
    many = [by_kind(make_run(tmp_path / f"{'x' * 20}{n}-0", name=f"{'x' * 20}{n}"), n) for n in range(5)]
    told = str(compare(many))
    assert told.count("held out by kind") > 1 and all(
        len(line) <= 80 for line in told[told.index("held out by kind") :].splitlines() if not line.startswith("curve")
    )


def test_one_evaluation_by_kind() -> None:
    told = kind_tables.plain({"heat": (3, 4), "look at it": (0, 3)})
    assert told == ["heat         75.0 %  3 of 4", "look at it    0.0 %  0 of 3"]
    assert kind_tables.plain({}) == []
