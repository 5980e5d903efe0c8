"""Count the rows of a Parquet file and a published artifact, and compare their texts, byte by byte."""

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

from data.artifact import Artifact

columns = ["prompt", "completion"]
plain = pq.ParquetFile(sys.argv[1]).read(columns)
published = Artifact("", "", Path(sys.argv[2])).read(columns)
print(json.dumps({"rows": len(published), "same": plain.to_pydict() == published.to_pydict()}))
