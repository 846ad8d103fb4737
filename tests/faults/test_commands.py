"""The quick part of the campaign, of the works that start commands."""

import pytest
from faults.works import COMMANDS, WORKS, quick_faults


@pytest.mark.parametrize("name", COMMANDS)
def test_no_traceback_and_nothing_wrong(name, tiny_data, calibrated_checkpoints, tmp_path):
    outcomes, bad = quick_faults(name, tiny_data, calibrated_checkpoints, tmp_path)
    assert len(outcomes) >= WORKS[name].QUICK
    assert bad == []
