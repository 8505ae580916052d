import dataclasses

import numpy as np
import pytest

import phiscope
from phiscope.errors import FilterError, NonFiniteError, StoreError
from phiscope.filtering import FilterOptions, LabelFields, fit_filter
from phiscope.filtering.split import hold_out
from phiscope.filtering.training import STRENGTHS
from phiscope.store import open_store

KINDS = ["ridge", "logistic", "forest", "mlp"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_head_tells_texts_of_unseen_templates_apart(kind, fitted):
    report = fitted(kind).report
    assert report.head.auroc > 0.8
    assert report.head.auroc > report.baseline.auroc + 0.1


def test_the_report_counts_rows_and_whole_groups(fitted, rows):
    counts = fitted().report.counts
    templates = [row["template"] for row in rows]
    out = {t for t, is_out in zip(templates, hold_out(templates, 0.4, 0), strict=True) if is_out}
    assert (counts.training + counts.held_out, counts.held_out_groups) == (240, len(out))
    assert counts.held_out == 12 * len(out)
    assert counts.training_groups == 20 - len(out)
    assert counts.training_positive + counts.held_out_positive == 120
    assert fitted().report.split_by == "template"


@pytest.mark.parametrize("keep_rate", [0.25, 0.5])
def test_the_threshold_keeps_its_share_of_the_training_part(fit, keep_rate):
    figures = fit(keep_rate=keep_rate).report.head
    assert figures.kept_in_training == pytest.approx(keep_rate, abs=1e-9)


def test_a_threshold_that_is_given_stands(fit):
    assert fit(threshold=0.7).threshold == 0.7


def test_the_baseline_keeps_as_much_of_the_training_part(fitted):
    report = fitted().report
    assert report.baseline.kept_in_training == pytest.approx(report.head.kept_in_training, abs=0.02)


def test_rows_are_split_by_their_ids_where_there_are_no_groups(fit, rows):
    report = fit(fields=LabelFields()).report
    out = hold_out([row["id"] for row in rows], 0.4, 0)
    assert (report.split_by, report.counts.held_out) == ("id", out.sum())


def test_grades_are_regressed_and_positive_from_three(folder, rows):
    def grade(row):
        return 4.0 if row["label"] == "textbook" else len(row["text"]) % 3

    graded = [{**row, "label": grade(row)} for row in rows]
    options = FilterOptions(held_out=0.4, threshold=3.0)
    fitted = fit_filter(folder, graded, options, fields=LabelFields(group="template"))
    assert fitted.report.head.auroc > 0.8
    scores = fitted.score_vectors(fitted.features.read(open_store(folder), slice(None)))
    targets = np.array([float(row["label"]) for row in graded])
    assert np.corrcoef(scores, targets)[0, 1] > 0.7
    assert scores.max() > 3


def test_columns_are_chosen_by_name_or_by_point(fit):
    assert fit(columns=("resid_post.2",)).features.columns == (
        "resid_post.2.mean",
        "resid_post.2.last",
    )
    assert fit(columns=("resid_post.1.last",)).features.widths == (64,)
    with pytest.raises(StoreError, match=r"no column of 'resid_post\.9'"):
        fit(columns=("resid_post.9",))


def test_a_given_regularization_is_used_and_else_one_is_chosen(fit):
    assert fit(regularization=7.0).report.regularization == 7.0
    assert fit(regularization=None).report.regularization in STRENGTHS


def test_a_side_without_both_kinds_is_refused(fit, rows):
    lessons = [row for row in rows if row["label"] == "textbook"][:24]
    junk = [row for row in rows if row["label"] == "junk"][:12]
    with pytest.raises(FilterError, match="needs both kinds; hold out another share"):
        fit(data=lessons + junk)


def test_a_store_of_tokens_is_refused(write_store, rows):
    store = write_store(rows[:4], pool=None)
    with pytest.raises(FilterError, match="a row for each token; extract with --pool"):
        fit_filter(store, rows[:4], FilterOptions(positive="textbook"))


def test_edited_states_are_refused(phi, write_store, rows):
    with phi.steer({"resid_post.1": np.ones(64, np.float32)}) as steered:
        store = write_store(rows[:4], phi=steered)
    with pytest.raises(FilterError, match="were edited"):
        fit_filter(store, rows[:4], FilterOptions(positive="textbook"))


def test_states_that_are_not_finite_are_refused(fit, folder, monkeypatch):
    store = phiscope.open_store(folder)
    monkeypatch.setattr(
        type(store["resid_post.1.mean"]), "float32", lambda self, rows: np.full((3, 64), np.nan)
    )
    with pytest.raises(NonFiniteError, match=r"3 texts of .* are not finite"):
        fit(store=store)


@pytest.mark.parametrize(
    "settings",
    [
        {"head": "svm"},
        {"keep_rate": 0.0},
        {"keep_rate": 1.0},
        {"held_out": 1.5},
        {"positive_from": 6.0},
        {"regularization": 0.0},
        {"threshold": float("nan")},
    ],
)
def test_options_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        FilterOptions(**settings)


def test_options_are_fixed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FilterOptions().seed = 1
