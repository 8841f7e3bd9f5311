"""The page of a training run: what it says at, below and beyond the limit, and what it draws."""

import re
import sys

import pytest

from frechet.analyze import History, Quantity, Reading
from frechet.analyze._run.reading import rewrite
from frechet.report import _command as command
from frechet.report import _history, _history_plots

HEADER = {"schema": "frechet.run/1", "quantities": ["stability"], "share": 0.02, "every": None, "seed": 0, "rtol": 0.02,
          "model": "Net <b>", "parameters": 1234}  # fmt: skip


def top(value, half=0.0105, limit=1.0):
    return Quantity(value, value - half, value + half, limit, half / value, 3, 0.1)


def reading(step, index, *, sharpness=2.0, rule="AdamW", notes=(), warnings=(), critical=None, noise=None):
    quantities = {"sharpness": top(sharpness, limit=None)}
    if index is not None:
        quantities["stability"] = top(index)
    if critical is not None:
        quantities["critical_rate"] = Quantity(critical, 0.97 * critical, 1.03 * critical)
    if noise is not None:
        quantities["noise"] = Quantity(*noise)
    return Reading(step, 1.0 / (1 + step), 0.1, rule, quantities, notes, warnings, 6, 0.5, 0.019)


def said(*readings):
    return " ".join(_history.sentences(History(HEADER, readings)))


def test_below_the_limit_it_says_how_much_larger_the_rate_could_be():
    text = said(reading(10, 0.2), reading(20, 0.25))
    assert "At step 20 the step of AdamW is 0.250 ± 0.011 of the longest stable one" in text
    assert "could be 4.0 times as large" in text
    assert "not told apart" in text  # the sharpness
    assert "curvature does not limit the learning rate here" in said(reading(20, 0.02))
    assert "1.9 % of the run's time of at most 2.0 %" in text


def test_at_the_limit_and_beyond():
    text = said(reading(10, 0.5), reading(20, 1.0), reading(30, 1.02))
    assert "at the edge of stability of AdamW: 1.020 ± 0.011 of the limit" in text
    assert "first at step 20, and in 66.7 % of the readings" in text
    text = said(reading(10, 0.5), reading(20, 2.0), reading(30, 1.5))
    assert "1.500 ± 0.011 times as long as is stable" in text
    assert "farthest beyond the limit was step 20" in text


def test_an_unknown_rule_a_rising_sharpness_and_the_rates():
    text = said(
        reading(10, None, rule=None), reading(20, None, rule=None, sharpness=5.0, critical=0.5, noise=(9.0, 3.0, 30.0))
    )
    assert "is not known: no rule of the optimizer was" in text
    assert "The sharpness rose from 2.000 ± 0.011 at step 10 to 5.000 ± 0.011 at step 20" in text
    assert "the rate in use, 0.100, is below it" in text
    assert "between 3.0 and 30 examples" in text
    crossed = reading(30, 1.0, critical=0.05, warnings=("a step at the present rate 0.1 raises the loss on the probe",))
    text = said(reading(20, 0.9), crossed)
    assert "is above it" in text
    assert "would raise the probe's loss at step 30" in text
    assert "too small to tell" in said(reading(20, 0.9, noise=(float("inf"), 1.0, float("inf"))))


def test_without_the_index_the_sharpness_and_its_limit_say_how_far_the_run_is():
    """A monitor of the sharpness alone, of an optimizer whose limit is one number, and of one that has none."""

    def sharp(step, value, limit):
        return Reading(
            step, 1.0, 0.1, "SGD with momentum", {"sharpness": top(value, limit=limit)}, (), (), 3, 0.1, 0.02
        )

    text = said(sharp(10, 5.0, 20.0), sharp(20, 10.0, 20.0))
    assert "At step 20 the step of SGD with momentum is 0.50000 ± 0.00053 of the longest stable one" in text
    assert "could be 2.0 times as large" in text
    assert "at the edge of stability of SGD with momentum" in said(sharp(10, 20.0, 20.0))
    text = said(sharp(10, 5.0, None))
    assert "is not known: its quantity 'stability' was not measured" in text


def test_readings_that_ended_early_are_counted():
    loose = Reading(10, 1.0, 0.1, "SGD", {"sharpness": Quantity(1.0, 0.5, 1.5, 2.0, 0.5, 2)}, (), (), 2, 0.1, 0.01)
    assert "1 reading ended before the eigenvalue was known to its tolerance" in said(loose, reading(20, 1.0))


def test_notes_are_told_once_with_their_steps():
    history = History(HEADER, tuple(reading(10 * i, 1.0, notes=("left out",)) for i in range(1, 4)))
    assert _history.notes(history) == ["3 readings, steps 10 to 30: left out"]
    many = History(HEADER, tuple(reading(i, 1.0, notes=(f"left {i}",)) for i in range(1, 13)))
    assert len(_history.notes(many)) == 9
    assert _history.notes(many)[-1] == "and 4 other notes in the file"


def test_the_page_holds_pictures_and_escapes_names():
    history = History(
        HEADER, (reading(10, 0.5, critical=1.0), reading(1000, 1.2, critical=0.2, noise=(9.0, 3.0, 30.0)))
    )
    text = _history.page(history, "run")
    assert "Net &lt;b&gt;" in text
    assert text.count("<svg") == 5  # stability, sharpness, critical rate, loss, noise
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    titles = [title for title, svg, _ in _history_plots.figures(history) if svg]
    assert titles == ["Distance to the stability limit", "Sharpness", "Critical rate", "Loss", "Noise scale"]
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_an_empty_run_has_a_page():
    text = _history.page(History(HEADER, ()), "run")
    assert "Nothing has been measured yet" in text
    assert "<svg" not in text


def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    rewrite(tmp_path / "run" / "readings.jsonl", {k: v for k, v in HEADER.items() if k != "schema"}, [reading(10, 0.5)])
    monkeypatch.setattr(sys, "argv", ["frechet", "history", str(tmp_path / "run")])
    assert command._code() == 0
    assert "At step 10" in capsys.readouterr().out
    assert (tmp_path / "run" / "history.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("content", [None, "no json\n{}", '{"schema": "other"}\n'])
def test_a_folder_without_readings_is_one_sentence(content, tmp_path, monkeypatch, capsys):
    if content is not None:
        (tmp_path / "readings.jsonl").write_text(content)
    monkeypatch.setattr(sys, "argv", ["frechet", "history", str(tmp_path)])
    assert command._code() == 2
    assert "frechet: read_history: " in capsys.readouterr().err
    assert not (tmp_path / "history.html").exists()
