"""Select rows at random: the baseline that every other selector has to beat.

A row's lot is drawn from its id and the seed alone, so that rows which come later change the choice of the others only
where they take their places.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from data.fingerprint import seed_for
from data.ids import lots
from infra.stage import Measures, Rows, stage
from infra.work import Work
from tasks.curate.selection import SelectParameters, choose, publish, read_pool, rounded


class SelectRandomParameters(SelectParameters):
    """How to draw."""

    method: Literal["random"] = Field("random", description="Selection at random.")
    seed: int = Field(0, ge=0, description="Chooses another sample.")


@stage("exact")
def select_random(work: Work, parameters: SelectRandomParameters, rows: Rows) -> Measures:
    """Take the rows with the lowest lots.

    Outputs: `rows`; `scores`, where a row's value is its lot between 0 and 1.
    """
    pool = read_pool(rows, parameters)
    drawn = lots(pool.ids, seed_for("select_random", parameters.seed))
    values = rounded(drawn / np.float64(2**64))
    return publish(work, pool, values, choose(pool, values, parameters.budget), {}, "not drawn")
