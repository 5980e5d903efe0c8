"""Under what machinery: stages, the store, shards, devices and settings.

Importing it, in any process, turns off what the libraries underneath would tell their makers.
"""

import os

NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
for _name, _value in NO_TELEMETRY.items():
    os.environ.setdefault(_name, _value)
