"""What all tests share. `make test` plays the same generated examples every time; NEW_EXAMPLES=1 draws others."""

import os
from pathlib import Path

from hypothesis import settings

settings.register_profile("same", derandomize=True)
if "NEW_EXAMPLES" not in os.environ:
    settings.load_profile("same")

# The calendar is read when the definitions are imported, so this stands before any import of them.
for _name in [name for name in os.environ if name.startswith("RECSYS_")]:
    del os.environ[_name]
os.environ["RECSYS_HOME"] = str(Path(__file__).parent / "home")

from recsys_assets_tests.graph import ingest_run, ingested_home, instance, train_run, trained_home  # noqa: E402
from recsys_assets_tests.s3_server import any_bucket, aws_environment, s3_bucket, s3_endpoint  # noqa: E402
from recsys_assets_tests.sql_servers import any_database, any_server, mariadb, postgresql  # noqa: E402

__all__ = [
    "any_bucket",
    "any_database",
    "any_server",
    "aws_environment",
    "ingest_run",
    "ingested_home",
    "instance",
    "mariadb",
    "postgresql",
    "s3_bucket",
    "s3_endpoint",
    "train_run",
    "trained_home",
]
