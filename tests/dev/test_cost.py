"""What benchmarks/cost.py counts of quantizing Wan2.1-1.3B."""

from cost import WAN, peaks, prompts_in, whole_minutes

from qarvd.calibrate.frame_weights import LEAST_PROMPTS
from qarvd.jobs.calibrate import MEASURED_IN_TIME
from qarvd.jobs.time_budget import CHOOSING, FITTING, MINUTES


def test_fitting_holds_at_most_3_gb_beyond_one_block_and_its_caches() -> None:
    stages = {str(row["stage"]): row for row in peaks(WAN, 64)}
    assert 0 < float(str(stages["walk and fit"]["other, GB"])) <= 3


def test_the_clock_takes_as_many_prompts_as_the_count_says_fit_into_the_usual_time() -> None:
    taken = prompts_in(MINUTES, MEASURED_IN_TIME, "short")
    fits, too_long = (whole_minutes(prompts, MEASURED_IN_TIME, "short") for prompts in (taken, taken + 2))
    assert taken > LEAST_PROMPTS and fits <= MINUTES < too_long


def test_choosing_bits_leaves_time_for_fewer_prompts() -> None:
    alone = prompts_in(MINUTES, MEASURED_IN_TIME, "short")
    assert LEAST_PROMPTS < prompts_in(MINUTES, MEASURED_IN_TIME, "short", FITTING + CHOOSING) < alone


def test_the_fewest_prompts_are_taken_whatever_the_time() -> None:
    assert prompts_in(0, MEASURED_IN_TIME, "short") == LEAST_PROMPTS
