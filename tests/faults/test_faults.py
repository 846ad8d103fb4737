"""The quick part of the campaign, of the works that stay within this process."""

import pytest
from faults.works import IN_PROCESS, WORKS, quick_faults


@pytest.mark.parametrize("name", IN_PROCESS)
def test_no_traceback_and_nothing_wrong(name, tiny_data, calibrated_checkpoints, tmp_path):
    outcomes, bad = quick_faults(name, tiny_data, calibrated_checkpoints, tmp_path)
    assert len(outcomes) >= WORKS[name].QUICK
    assert bad == []
