"""The fixtures of `tests/unit`, for files that take longer than all of its."""

from tests.unit.conftest import (
    build_run,
    exported,
    make_config,
    make_denoiser,
    make_pipeline,
    make_run,
    make_shards,
    make_windows,
    measured_clips,
    no_waiting_for_the_disk,
    plain_record,
    report_shards,
    secure_record,
    wake_zeros,
)

__all__ = [
    "build_run",
    "exported",
    "make_config",
    "make_denoiser",
    "make_pipeline",
    "make_run",
    "make_shards",
    "make_windows",
    "measured_clips",
    "no_waiting_for_the_disk",
    "plain_record",
    "report_shards",
    "secure_record",
    "wake_zeros",
]
