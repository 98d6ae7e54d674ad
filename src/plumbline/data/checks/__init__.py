"""Is the geometry of a data set true?

Depth of one view is moved into another and compared there, for the scene as read and for each of the usual misreadings; see
`measure` for what is measured and `verdict` for how it is judged. The import of matplotlib waits until a picture is drawn.
"""

from plumbline.data.checks.dataset import check_dataset, require_true, verdict_table, write_check
from plumbline.data.checks.folder import check_folder
from plumbline.data.checks.records import CheckConfig, DatasetCheck, SceneCheck
from plumbline.data.checks.scene import check_scene

__all__ = [
    "CheckConfig",
    "DatasetCheck",
    "SceneCheck",
    "check_dataset",
    "check_folder",
    "check_scene",
    "require_true",
    "verdict_table",
    "write_check",
]
