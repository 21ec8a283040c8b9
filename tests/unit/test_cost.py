"""What docs/quality.md promises of Wan2.1-1.3B is what the count says."""

from cost import WAN, peaks, prompts_in

from qarvd.jobs.calibrate import MEASURED_IN_TIME
from qarvd.jobs.pace import MINUTES


def test_fitting_holds_at_most_3_gb_beyond_one_block_and_its_caches() -> None:
    stages = {str(row["stage"]): row for row in peaks(WAN)}
    assert 0 < float(str(stages["walk and fit"]["other, GB"])) <= 3


def test_what_a_job_takes_by_default_is_half_an_hour_and_14_prompts() -> None:
    assert MINUTES == 30 and prompts_in(MINUTES, MEASURED_IN_TIME, "short") == 14


def test_no_time_is_enough_for_no_prompt() -> None:
    assert prompts_in(0, MEASURED_IN_TIME, "short") == 0
