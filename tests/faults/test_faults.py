"""The quick part of the campaign, of the works that stay within this process."""

import pytest
from faults.project import Project
from faults.works import IN_PROCESS, outcomes_of


@pytest.mark.parametrize("name", IN_PROCESS)
def test_no_traceback_and_nothing_wrong(name, tiny_data, calibrated_checkpoints, tmp_path):
    project = Project(tiny_data, calibrated_checkpoints)
    outcomes = outcomes_of(name, project, IN_PROCESS[name].quick, 0, tmp_path)
    assert len(outcomes) >= IN_PROCESS[name].quick
    assert [outcome.note for outcome in outcomes if outcome.bad] == []
