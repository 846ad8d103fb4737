"""The quick part of the campaign, of the works that start commands."""

import pytest
from faults.project import Project
from faults.works import COMMANDS, outcomes_of


@pytest.mark.parametrize("name", COMMANDS)
def test_no_traceback_and_nothing_wrong(name, tiny_data, calibrated_checkpoints, tmp_path):
    project = Project(tiny_data, calibrated_checkpoints)
    outcomes = outcomes_of(name, project, COMMANDS[name].quick, 0, tmp_path)
    assert len(outcomes) >= COMMANDS[name].quick
    assert [outcome.note for outcome in outcomes if outcome.bad] == []
