"""What docs/kernels.md says was tried: the forms still apply, and the committed counts are those it shows."""

import json
from pathlib import Path

import pytest

from benchmarks import kernel_forms, machine_code

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ROWS = json.loads(kernel_forms.COMMITTED.read_text())
NAMES = ("kernel", "activation", "rng", "dtype", "target")


@pytest.mark.parametrize("form", kernel_forms.FORMS, ids=lambda form: form.name)
def test_forms_apply_to_the_source(form, tmp_path):
    kernel_forms.source_of(form, tmp_path)
    for file, _, new in form.replaced:
        assert new in (tmp_path / "fusedact" / file).read_text()


def test_a_form_of_other_source_is_refused(tmp_path):
    form = kernel_forms.Form("old", (), (("kernels/dropout.py", "what was once here", ""),))
    with pytest.raises(ValueError, match=r"form 'old': kernels/dropout.py has no longer"):
        kernel_forms.source_of(form, tmp_path)


def test_every_row_over_its_budget_had_five_other_forms():
    (version,) = {row["triton"] for row in ROWS}
    path = RESULTS / "machine-code" / f"triton-{version[:3]}.json"
    for row in (machine_code.Row(**row) for row in json.loads(path.read_text())):
        budget = machine_code.budget(row)
        if budget is None or row.instructions_per_element <= budget:
            continue
        key = tuple(getattr(row, name) for name in NAMES)
        counts = {r["form"]: r["instructions_per_element"] for r in ROWS if tuple(r[n] for n in NAMES) == key}
        assert counts.pop("as it is") == row.instructions_per_element
        assert len(counts) >= 5, key


def test_every_form_is_counted():
    counted = {(row["form"], row["kernel"], row["activation"], row["rng"]) for row in ROWS}
    assert counted == {
        (form.name, family.kernel, family.activation, rng)
        for form in kernel_forms.FORMS
        for family in form.families
        for rng in family.rngs
    }


def test_the_page_has_the_committed_counts():
    page = (ROOT / "docs" / "kernels.md").read_text()
    assert kernel_forms.rewritten(page, ROWS) == page


def test_a_page_without_a_table_is_refused():
    with pytest.raises(ValueError, match=r"blocks have to be .*'elu'.* but got \[\]"):
        kernel_forms.rewritten("", ROWS)
