"""``torchcoinfer bench paper`` in its fast form: what the figures say, not only that they are there."""

import argparse
import itertools
import json

import numpy as np
import pytest
import torch

from torchcoinfer.bench import paper
from torchcoinfer.bench.paper import draw
from torchcoinfer.bench.paper.designs import DEVICE, FIXED, JOINT, JOINT_SPLIT, RANDOM, SERVER
from torchcoinfer.bench.paper.quantizers import KINDS, levels, pruned, quantize
from torchcoinfer.errors import ArgumentError, MissingExtra


def options(*arguments):
    parser = argparse.ArgumentParser()
    paper.add_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Every figure of the fast form: name -> its JSON."""
    folder = tmp_path_factory.mktemp("paper")
    assert paper.main(options("--output", folder, "--fast", "--quiet")) == 0
    figures = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert {path.stem for path in folder.glob("*.png")} == set(figures)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    assert {path.suffix for path in folder.iterdir()} == {".json", ".png"}  # no half-written file
    return figures


def lines(figure, panel):
    """label -> y of one panel, None as infinity: nothing feasible is worse than anything."""
    series = figure["panels"][panel]["series"]
    return {s["label"]: np.array([np.inf if y is None else y for y in s["y"]], float) for s in series}


def test_every_figure_says_what_it_shows_and_from_which_settings(drawn):
    stems = ("weights", "rates", "bit-width", "pruning", "designs", "trials", "splits")
    assert {name.split("-fcdnn")[0].split("-blip")[0].split("-git")[0] for name in drawn} == set(stems)
    for name, figure in drawn.items():
        assert figure["name"] == name
        assert figure["title"] and figure["source"] and figure["panels"]
        for panel in figure["panels"]:
            assert panel["x_label"] and panel["y_label"]
            for series in panel["series"]:
                assert len(series["x"]) == len(series["y"]) + (series["kind"] == "bars")
                assert any(y is not None for y in series["y"]) or name.startswith(("trials", "splits"))


def test_blahut_arimoto_lies_between_the_bounds(drawn):
    ratios = lines(drawn["rates"], 1)
    assert np.all(ratios["Blahut-Arimoto"] >= 1.0)
    assert np.all(ratios["Blahut-Arimoto"] <= ratios["D_U"])
    assert np.all(np.diff(ratios["Blahut-Arimoto"]) < 0)
    assert drawn["rates"]["facts"]["ordered"] == drawn["rates"]["facts"]["points"] == len(ratios["D_U"])
    curves = lines(drawn["rates"], 0)
    assert np.all(curves["D_L, converse"] <= curves["D_U, random code"])
    for code in ("Lloyd-Max", "best uniform grid"):
        assert np.all(curves[code] > np.exp2(-(np.arange(1, 8) + 1.0)))
    assert np.all(curves["best uniform grid"] >= curves["Lloyd-Max"])


def test_the_histograms_are_densities_and_every_layer_is_judged(drawn):
    figure = drawn["weights-fcdnn-16"]
    assert len(figure["facts"]["layers"]) == figure["facts"]["of"] == 16
    for panel in figure["panels"][:-1]:
        bars = panel["series"][0]
        assert 0.97 < np.dot(bars["y"], np.diff(bars["x"])) <= 1.0 + 1e-5
    own = [layer["ks"] for layer in figure["facts"]["layers"].values()]
    np.testing.assert_allclose(figure["panels"][-1]["series"][0]["y"], own, rtol=1e-5)


def test_distortion_over_the_bit_width(drawn):
    figure = drawn["bit-width"]
    for panel in (0, 1):  # log10: the bound is far above what is measured, entrywise norms worst of all
        y = lines(figure, panel)
        assert np.all(y["Prop. III.1, induced norms"] > y["output, measured"] + 3)
        assert np.all(y["Prop. III.1, entrywise norms"] > y["Prop. III.1, induced norms"])
    parameters, relative = lines(figure, 3), lines(figure, 2)
    assert np.all(np.diff(parameters["uniform"]) < 0)
    assert np.all(np.diff(parameters["power of two"]) <= 0)
    assert np.all(np.diff(relative["uniform"]) < 0)
    assert np.all(parameters["D_L"] < parameters["D_U"])
    assert np.all(parameters["D_L"] < parameters["uniform"])
    # from 4 bits on powers of two only refine what is small already
    assert parameters["power of two"][-1] > 2 * parameters["uniform"][-1]


def test_output_and_parameter_distortion_grow_with_the_pruned_share(drawn):
    figure = drawn["pruning-fcdnn-16"]
    parameters, output = lines(figure, 0), lines(figure, 1)["measured"]
    assert parameters["measured"][0] == parameters["D1, exponential"][0] == output[0] == 0
    assert np.all(np.diff(parameters["measured"]) > 0)
    assert np.all(np.diff(output) > 0)
    assert figure["facts"]["largest_difference_to_D1"] < 0.15


def sweeps(drawn):
    for name in ("designs-blip-2", "designs-git-base", "trials-fcdnn-16"):
        for index, panel in enumerate(drawn[name]["panels"]):
            if "held-out" not in panel["title"]:
                yield name, lines(drawn[name], index)


def test_no_baseline_is_better_than_the_joint_design_at_any_budget(drawn):
    better = dict.fromkeys((JOINT, FIXED, RANDOM, DEVICE, SERVER), 0)
    for _, y in sweeps(drawn):
        for name in better:
            assert np.all(y[JOINT_SPLIT] <= y[name] * (1 + 1e-5))
            better[name] += int(np.sum(y[JOINT_SPLIT] < y[name] * (1 - 1e-3)))
        for name in (FIXED, RANDOM):  # the same split
            assert np.all(y[JOINT] <= y[name] * (1 + 1e-5))
    assert all(count > 0 for count in better.values())  # and each is beaten somewhere


def test_more_time_or_energy_never_hurts_a_design_that_is_optimized(drawn):
    for _, y in sweeps(drawn):
        for name in (JOINT_SPLIT, JOINT, FIXED, DEVICE, SERVER):
            for before, after in itertools.pairwise(y[name]):
                assert after <= before or before == after == np.inf


def test_held_out_data_tell_the_same(drawn):
    figure = drawn["trials-fcdnn-16"]
    for chosen, judged in ((0, 1), (2, 3)):
        own, other = lines(figure, chosen)[JOINT_SPLIT], lines(figure, judged)[JOINT_SPLIT]
        assert np.array_equal(np.isinf(own), np.isinf(other))
        finite = np.isfinite(own)
        np.testing.assert_allclose(own[finite], other[finite], rtol=0.5, atol=1e-6)


def test_a_wider_band_never_hurts_and_reaches_more_splits(drawn):
    figure = drawn["splits-fcdnn-16"]
    for panel in (0, 1):
        narrow, *_, wide = lines(figure, panel).values()
        assert np.sum(np.isfinite(wide)) > np.sum(np.isfinite(narrow))
        assert np.all(wide <= narrow * 1.2)
    best = lines(figure, 2)
    assert all(y[-1] <= y[0] * 1.2 for y in best.values())


def test_the_papers_rounding_is_found_infeasible_somewhere(drawn):
    found = [drawn[name]["facts"]["rounded_to_nearest"] for name in ("designs-blip-2", "designs-git-base")]
    assert sum(fact["rounded_is_infeasible"] for fact in found) > 0
    example = next(fact["example"] for fact in found if fact["example"])["rounding"]
    assert example["rounded_bits"] == example["best_bits"] + 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 5])
def test_quantizers_round_to_their_levels_and_find_a_good_clip(kind, bits):
    points = levels(kind, bits)
    assert len(points) == 2 ** (bits - 1)
    assert points[0] == 0 and points[-1] == 1
    assert np.all(np.diff(points) > 0)
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    found = quantize(weight, kind, bits)
    top = float(found.abs().max())
    grid = np.concatenate([-points[::-1], points]) * top
    nearest = grid[np.abs(weight.numpy()[..., None] - grid).argmin(-1)]
    np.testing.assert_allclose(found, nearest, atol=1e-6)

    def error(scale):
        own = grid / top * scale
        return np.abs(weight.numpy() - own[np.abs(weight.numpy()[..., None] - own).argmin(-1)]).mean()

    biggest = float(weight.abs().max())
    best = min(error(c * biggest) for c in np.geomspace(0.05, 1, 40))
    assert float((found - weight).abs().mean()) == pytest.approx(best, rel=1e-5)


def test_pruning_drops_the_smallest_and_nothing_else():
    weight = {"a": torch.arange(-5.0, 6.0).reshape(1, -1)}
    assert pruned(weight, 0.0)["a"].equal(weight["a"])
    found = pruned(weight, 5 / 11)["a"]
    assert int((found != 0).sum()) == 6
    assert found[weight["a"].abs() >= 3].equal(weight["a"][weight["a"].abs() >= 3])


def test_bad_input_is_refused_before_any_work(monkeypatch, tmp_path):
    with pytest.raises(ArgumentError, match="no such quantizer"):
        levels("uniform", 1)
    with pytest.raises(ArgumentError, match="no such quantizer"):
        levels("cubic", 4)

    def missing():
        raise MissingExtra("matplotlib", "report")

    monkeypatch.setattr(paper, "check_matplotlib", missing)
    with pytest.raises(MissingExtra, match=r"torchcoinfer\[report\]"):
        paper.main(options("--output", tmp_path / "none", "--fast"))
    assert not (tmp_path / "none").exists()
    assert draw.check_matplotlib() is None
