"""Split rows into train and test, each row by its own id: adding rows never moves another to the other side."""

from functools import partial
from hashlib import blake2b

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from infra.shards import Tables
from infra.stage import Measures, Parameters, Rows, stage
from infra.work import Slice, Work


class SplitParameters(Parameters):
    """How to split."""

    test_share: float = Field(0.1, gt=0, lt=1, description="Expected share of rows held out for testing.")
    seed: int = Field(0, ge=0, description="Chooses another split.")


@stage("exact")
def split(work: Work, parameters: SplitParameters, rows: Rows) -> Measures:
    """Send each row to `train` or `test`."""
    shards = work.map(partial(split_rows, parameters), work.slices(rows))
    work.keep(shards, "train", "test")
    return {}


def split_rows(parameters: SplitParameters, rows: Slice) -> Tables:
    """Split one shard."""
    table = rows.read()
    held = pa.array(
        [
            draw(each, parameters.seed) < parameters.test_share
            for each in table["row_id"].combine_chunks().storage.to_pylist()
        ],
        pa.bool_(),
    )
    return {"train": table.filter(pc.invert(held)), "test": table.filter(held)}


def draw(row_id: bytes, seed: int) -> float:
    """Draw a number in [0, 1) for a row from its id (16 bytes) and the seed alone."""
    digest = blake2b(b"split\0" + seed.to_bytes(8, "little") + row_id, digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)
