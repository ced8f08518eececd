"""Figures that are kept: only ever those that would be drawn; and pages that are written whole or not at all."""

import contextlib
import gc
import io
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from reproduce.cli.report import THREADS
from reproduce.errors import UserError
from reproduce.report import drawings, figures, render, style
from reproduce.report.drawings import Drawing, complete
from reproduce.report.processes import all_made
from reproduce.results.cache import files_digest
from reproduce.results.evaluate import evaluate
from reproduce.results.match import ResultIndex

ROOT = Path(__file__).resolve().parents[2]


def line(height):
    figure = Figure(figsize=(2, 1), layout="constrained")
    figure.subplots().plot([0, 1], [0, height])
    return figure


class Drawn(Drawing):
    """Counts how often a figure is drawn."""

    times = 0

    def drawn(self):
        Drawn.times += 1
        return super().drawn()


@pytest.fixture
def draw(tmp_path):
    """Shows a line as a page would, and says how often it was drawn for that."""

    def shown(height=1.0):
        one, before = Drawn("a line", [height], lambda: line(height)), Drawn.times
        complete([one], kept=tmp_path)
        return str(one.svg), Drawn.times - before

    return shown


def finding(experiment, results):
    return evaluate("table9", experiment, ResultIndex(results)).tasks["digits"]


def test_a_kept_figure_is_the_drawn_one(draw):
    drawn, once = draw()
    kept_one, again = draw()
    assert (once, again) == (1, 0)
    assert drawn == kept_one == Drawing("a line", [1.0], lambda: line(1.0)).drawn()


def test_another_value_or_other_code_draws_anew(draw, monkeypatch):
    first, _ = draw(1.0)
    other, times = draw(1.5)
    assert times == 1
    assert other != first
    monkeypatch.setattr(drawings, "code", lambda: "other code")
    assert draw(1.0) == (first, 1)


@pytest.mark.parametrize("damage", [b"", b"x", b"\xff\xfe", None])
def test_a_damaged_kept_figure_is_drawn_anew(draw, tmp_path, damage):
    first, _ = draw()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"a line", b"A line") if damage is None else damage)
    assert draw() == (first, 1)
    assert draw() == (first, 0)


def test_a_figure_kept_under_another_name_is_not_taken(draw, tmp_path):
    draw(1.0)
    (first,) = tmp_path.iterdir()
    second, _ = draw(2.0)
    (path,) = set(tmp_path.iterdir()) - {first}
    path.write_bytes(first.read_bytes())
    assert draw(2.0) == (second, 1)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path):
    (tmp_path / "file").write_text("")
    one = Drawing("a line", [1.0], lambda: line(1.0))
    complete([one], kept=tmp_path / "file" / "kept")
    assert one.svg == one.drawn()


def test_processes_draw_what_one_draws():
    heights = (1.0, 2.0, 3.0)
    several = [Drawing("a line", [height], lambda height=height: line(height)) for height in heights]
    complete(several, processes=2)
    assert [str(one.svg) for one in several] == [one.drawn() for one in several]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_done_meanwhile_is_done_once_and_what_is_made_comes_in_order(processes):
    done = []
    made = all_made([partial(str, height) for height in (3, 1, 2)], processes, lambda: done.append("data"))
    assert (made, done) == (["3", "1", "2"], ["data"])
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_what_is_made_inside_another_is_made_there_and_an_error_comes_out(processes):
    def pages(name):
        return all_made([partial(lambda part: (name + part, os.getpid()), part) for part in "xy"], processes=2)

    made = all_made([partial(pages, "a"), partial(pages, "b")], processes)
    assert [[text for text, _ in of_one] for of_one in made] == [["ax", "ay"], ["bx", "by"]]
    assert all(len({process for _, process in of_one}) == 1 for of_one in made)

    def wrong():
        raise UserError("found x, expected y")

    with pytest.raises(UserError, match="found x, expected y"):
        all_made([wrong, partial(str, 1)], processes)
    assert all_made([partial(str, 1)], processes) == ["1"]


def test_a_report_has_one_thread_of_linear_algebra_and_leaves_the_search_for_garbage_as_it_was():
    code = (
        "import gc, os, sys\n"
        "from reproduce.cli.report import THREADS, _undisturbed\n"
        "assert 'numpy' not in sys.modules\n"
        "for enabled in (True, False):\n"
        "    gc.enable() if enabled else gc.disable()\n"
        "    try:\n"
        "        with _undisturbed():\n"
        "            assert not gc.isenabled()\n"
        "            raise KeyError\n"
        "    except KeyError:\n"
        "        print(gc.isenabled() == enabled)\n"
        "import numpy\n"
        "from threadpoolctl import threadpool_info\n"
        "print({one['num_threads'] for one in threadpool_info()}, sorted({os.environ[name] for name in THREADS}))\n"
    )
    unset = {name: value for name, value in os.environ.items() if name not in THREADS}
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=unset, check=True, capture_output=True, text=True)
    assert said.stdout.splitlines() == ["True", "True", "{1} ['1']"]


def test_the_key_follows_what_a_figure_shows(make_experiment, make_results):
    experiment = make_experiment()
    results = make_results(experiment)
    colors = style.arm_colors([experiment])

    def key(results=results, experiment=experiment, name="seeds", colors=colors):
        return figures.drawing(name, finding(experiment, results), colors).key

    epoch = results[0].epochs[0]
    moved = results[0].model_copy(update={"epochs": (epoch.model_copy(update={"train_loss": 0.123}),)})
    others = {
        key(results=[moved, *results[1:]]),  # its seal is as before
        key(results=results[1:]),
        key(experiment=experiment.model_copy(update={"title": "Another"})),
        key(name="learning_curves"),
        key(colors=style.ArmColors({arm: 7 - place for arm, place in colors.places.items()})),
    }
    assert key() == key()
    assert len(others | {key()}) == 6


def test_files_of_a_method_are_in_the_key_of_its_figures(tmp_path):
    (tmp_path / "figures.py").write_text("A = 1")
    before = files_digest(tmp_path)
    (tmp_path / "figures.py").write_text("A = 2")
    assert files_digest(tmp_path) != before


def test_a_readers_own_settings_change_no_byte(tmp_path):
    (tmp_path / "matplotlibrc").write_text(
        "font.family: serif\nfont.size: 20\naxes.facecolor: red\nlines.linewidth: 9\nsavefig.bbox: tight\n"
        "axes.formatter.use_locale: True\nsvg.fonttype: path\npath.simplify_threshold: 1\nfigure.dpi: 300\n"
    )
    script = (
        "from matplotlib.figure import Figure\nfrom reproduce.report.drawings import Drawing\n"
        "def draw():\n figure = Figure(layout='constrained'); axis = figure.subplots()\n"
        " axis.plot([0, 1, 2], [1e-3, 1e4, 2], label='x'); axis.set(yscale='log', title='t'); axis.legend()\n"
        " return figure\n"
        "print(Drawing('x', [], draw).drawn())\n"
    )
    here = io.StringIO()
    with contextlib.redirect_stdout(here):
        exec(script, {})
    there = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        check=True,
        capture_output=True,
        env={
            **{"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONUTF8": "1"},
            **{"MATPLOTLIBRC": str(tmp_path), "LC_ALL": "C"},
        },
    ).stdout
    assert there.startswith(b"<svg")
    assert there == here.getvalue().encode()


def test_an_error_while_writing_leaves_the_old_page(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    render.write(path, "old")

    def half(self, content):
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", half)
        with pytest.raises(UserError, match="No space left"):
            render.write(path, "new")
    assert path.read_text("utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_a_figure_that_cannot_be_drawn_is_a_sentence_and_the_others_are_there(tmp_path, capsys):
    def fail():
        raise ValueError("no law\nof <kind> 'x'")

    good = Drawing("Fine.", ["good"], lambda: line(1.0))
    bad = Drawing("Bad & new.", ["bad"], fail)
    complete([bad, good], kept=tmp_path)
    assert "<svg" in good.svg
    assert bad.svg == (
        '<p class="undrawn">Bad &amp; new. This figure could not be drawn '
        "(ValueError: no law of &lt;kind&gt; &#39;x&#39;).</p>"
    )
    assert bad.table == ""
    assert capsys.readouterr().err.startswith("not drawn: Bad & new. This figure could not be drawn (ValueError")
    assert len(list(tmp_path.iterdir())) == 1  # what failed is tried again
