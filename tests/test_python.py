"""What Python programs call: stages by any name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vswin_extract.errors import UsageError
from vswin_extract.network.variants import parse_stages


@given(st.lists(st.integers(1, 4)), st.sampled_from(["{}", "stage{}", "Stage {}", " {}", "stage{},"]))
def test_stages_have_any_usual_name(stages: list[int], form: str) -> None:
    wanted = tuple(sorted(set(stages)))
    words = [form.format(stage) for stage in stages]
    assert parse_stages(stages) == parse_stages(np.array(stages, int)) == parse_stages(words) == wanted
    assert parse_stages(iter(words)) == wanted
    for stage, word in zip(stages, words, strict=True):
        assert parse_stages(stage) == parse_stages(word) == (stage,)
    if stages:
        assert parse_stages(",".join(word.rstrip(",") for word in words)) == wanted
    assert parse_stages("all") == parse_stages(["all", 2]) == (1, 2, 3, 4)


@pytest.mark.parametrize("wrong", [0, 5, -1, 4.0, True, "", "5", "stage5", "3;4", "stages", None, [4, None], [[4]]])
def test_what_is_no_stage(wrong: object) -> None:
    with pytest.raises(UsageError, match="stages are 1 to 4"):
        parse_stages(wrong)  # type: ignore[arg-type]
