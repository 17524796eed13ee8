import os
from pathlib import Path

import pytest


@pytest.fixture
def traces_folder() -> Path:
    setting = os.environ.get("TRIMTAB_TRACES")
    candidates = [Path(setting)] if setting else []
    candidates += [parent / "shared" / "traces" for parent in Path(__file__).parents]
    for folder in candidates:
        if folder.is_dir():
            return folder
    pytest.skip("no folder of traces: set TRIMTAB_TRACES")
