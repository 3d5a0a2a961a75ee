"""Studies: a grid of methods, densities and seeds from one YAML file, tuned with equal budget, run in workers."""

from .agenda import Agenda, Failure, Job, Outcome
from .definition import Key, Row, Study, Tune
from .display import Display
from .results import lines, print_lines, print_outcome, to_dict, write_outcome, write_report
from .running import run_in_workers, run_study
from .tuning import Score, Tuning

__all__ = [
    "Agenda",
    "Display",
    "Failure",
    "Job",
    "Key",
    "Outcome",
    "Row",
    "Score",
    "Study",
    "Tune",
    "Tuning",
    "lines",
    "print_lines",
    "print_outcome",
    "run_in_workers",
    "run_study",
    "to_dict",
    "write_outcome",
    "write_report",
]
