"""What docs/quality.md promises of Wan2.1-1.3B is what the count says."""

from cost import WAN, Card, minutes, peaks

from qarvd.jobs.calibrate import MEASURED_IN_TIME


def test_fitting_holds_at_most_3_gb_beyond_one_block_and_its_caches() -> None:
    stages = {str(row["stage"]): row for row in peaks(WAN)}
    assert 0 < float(str(stages["walk and fit"]["other, GB"])) <= 3


def test_half_an_hour_is_enough_for_13_prompts() -> None:
    *_, whole = minutes(WAN, Card(), 13, MEASURED_IN_TIME, "short")
    assert float(str(whole["minutes"])) <= 30
