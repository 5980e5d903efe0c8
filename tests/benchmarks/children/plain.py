"""Read a file with pyarrow and write it as Parquet, with the compression that artifacts use."""

import sys
from pathlib import Path

import pyarrow.json
import pyarrow.parquet as pq

source, target = map(Path, sys.argv[1:])
table = pq.ParquetFile(source).read() if source.suffix == ".parquet" else pyarrow.json.read_json(source)
pq.write_table(table, target, compression="zstd", compression_level=1, row_group_size=10_000)
