"""The quick part of the campaign: a few faults of each work."""

import numpy as np
import pytest
from faults.outcomes import KINDS, REFUSED, RIGHT
from faults.project import Project
from faults.works import WORKS


@pytest.mark.parametrize("name", WORKS)
def test_no_traceback_and_nothing_wrong(name, tiny_data, prepared_checkpoints, tmp_path):
    project = Project(tiny_data, prepared_checkpoints)
    outcomes = list(WORKS[name].faults(project, np.random.default_rng(0), WORKS[name].QUICK, tmp_path))
    assert len(outcomes) >= WORKS[name].QUICK
    assert {outcome.kind for outcome in outcomes} <= set(KINDS)
    assert [outcome.note for outcome in outcomes if outcome.kind not in (RIGHT, REFUSED)] == []
